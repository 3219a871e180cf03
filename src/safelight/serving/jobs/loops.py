"""Work that is done again and again for as long as the server runs, whatever goes wrong in one turn of it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from safelight.errors import StorageFailed

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 5.0
STALE_S = 5.0
"""A loop whose last turn is so long ago hangs."""


class Loop:
    """A turn, a pause, and again. What a turn raises is logged, and the next one comes after a longer pause."""

    def __init__(self, name: str, turn: Callable[[], Awaitable[object]], *, every_s: float = 0.0) -> None:
        self.name = name
        self.turn = turn
        self.every_s = every_s
        self.fault: Exception | None = None
        """What ended the last turn."""
        self.turned = time.monotonic()
        self.stopping = False

    async def run(self) -> None:
        """Until `stopping`, which takes effect after a turn, or until it is cancelled."""
        faults = 0
        while not self.stopping:
            try:
                await self.turn()
            except Exception as error:  # noqa: BLE001  a loop that ends unseen leaves accepted jobs in line for ever
                faults += 1
                self.say(error)
                await asyncio.sleep(min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** (faults - 1)))
            else:
                faults, self.fault = 0, None
                self.turned = time.monotonic()
                await asyncio.sleep(self.every_s)

    def say(self, error: Exception) -> None:
        """A fault that lasts is logged once; one of ours with its traceback."""
        if str(error) != str(self.fault):
            broken = None if isinstance(error, StorageFailed) else error
            log.warning("%s: %s; tried again", self.name, error, exc_info=broken)
        self.fault = error

    def trouble(self) -> str:
        """Why nobody should count on it now; empty where all is well."""
        if self.fault is not None:
            return f"{self.name}: {self.fault}"
        if time.monotonic() - self.turned > self.every_s + STALE_S:
            return f"{self.name}: nothing has happened for {time.monotonic() - self.turned:.0f} s"
        return ""
