"""A limit on requests of one address, for what can be asked without a key."""

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from starlette.requests import Request

from safelight.errors import TooManyRequests

WINDOW_S = 60.0
MAX_ADDRESSES = 10_000
"""The latest are remembered, so that many addresses take no more memory."""


class AddressLimit:
    """At most so many requests a minute; of one process, and lost with it."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self.clock = clock
        self.seen: OrderedDict[str, deque[float]] = OrderedDict()

    def take(self, request: Request) -> None:
        """
        Raises:
            TooManyRequests: the address has asked too often.
        """
        address = request.client.host if request.client else ""
        now = self.clock()
        times = self.seen.pop(address, deque[float]())
        self.seen[address] = times
        while len(self.seen) > MAX_ADDRESSES:
            self.seen.popitem(last=False)
        while times and times[0] <= now - WINDOW_S:
            times.popleft()
        if len(times) >= self.per_minute:
            wait_s = math.ceil(times[0] + WINDOW_S - now)
            raise TooManyRequests(f"at most {self.per_minute} pictures a minute", retry_after_s=wait_s)
        times.append(now)
