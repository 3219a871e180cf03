"""Background loops that run as long as the server does and survive errors of single iterations."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from safelight.errors import StorageFailed

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 5.0
STALE_S = 5.0
"""A loop counts as hung this long after its next iteration was due."""


class Loop:
    """Call `iteration` again and again, with a pause between; after an error, log it and pause longer."""

    def __init__(self, name: str, iteration: Callable[[], Awaitable[object]], *, every_s: float = 0.0) -> None:
        self.name = name
        self.iteration = iteration
        self.every_s = every_s
        self.error: Exception | None = None
        """The error of the last iteration; None if it succeeded."""
        self.last_success = time.monotonic()
        self.stopping = False

    async def run(self) -> None:
        """Run until cancelled, or until `stopping` is set, which takes effect after the current iteration."""
        failures = 0
        while not self.stopping:
            try:
                await self.iteration()
            except Exception as error:  # noqa: BLE001  if the loop ended, accepted jobs would wait for ever
                failures += 1
                self.log_error(error)
                await asyncio.sleep(min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** (failures - 1)))
            else:
                failures, self.error = 0, None
                self.last_success = time.monotonic()
                await asyncio.sleep(self.every_s)

    def log_error(self, error: Exception) -> None:
        """Log an error once while it persists; with its traceback unless the database is unavailable."""
        if str(error) != str(self.error):
            details = None if isinstance(error, StorageFailed) else error
            log.warning("%s: %s; tried again", self.name, error, exc_info=details)
        self.error = error

    def problem(self) -> str:
        """Why the loop is unhealthy; empty if it is healthy."""
        if self.error is not None:
            return f"{self.name}: {self.error}"
        if time.monotonic() - self.last_success > self.every_s + STALE_S:
            return f"{self.name}: no iteration has succeeded for {time.monotonic() - self.last_success:.0f} s"
        return ""
