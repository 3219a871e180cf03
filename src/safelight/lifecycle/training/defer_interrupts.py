"""Ctrl-C waits: what is done in one piece is done to its end before KeyboardInterrupt is raised."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def defer_interrupts() -> Generator[None, None, None]:
    """In the main thread, where alone Python hears signals; elsewhere there is nothing to wait for.

    Raises:
        KeyboardInterrupt: after the block, if SIGINT came during it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = False

    def on_event(*_: object) -> None:
        nonlocal heard
        heard = True

    before = signal.signal(signal.SIGINT, on_event)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if heard:
        raise KeyboardInterrupt
