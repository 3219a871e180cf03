"""Defer Ctrl-C: finish a block that must not be interrupted, then raise KeyboardInterrupt."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def defer_interrupts() -> Generator[None, None, None]:
    """Defer SIGINT in the main thread; other threads receive no signals in Python.

    Raises:
        KeyboardInterrupt: after the block, if SIGINT arrived during it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def handler(*_: object) -> None:
        nonlocal interrupted
        interrupted = True

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if interrupted:
        raise KeyboardInterrupt
