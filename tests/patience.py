"""How tests wait: until a condition is true, never for a fixed time.

The bound is many times what anything takes on an idle machine; only a test that hangs reaches it.
"""

import asyncio
import time
from collections.abc import Callable

PATIENCE_S = 300.0
EVERY_S = 0.02


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(EVERY_S)


async def wait_in_loop_until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(EVERY_S)
