"""Work of others that may hang or fail: a key service, a time stamp authority."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(timeout_s: float, work: Callable[[], T]) -> T:
    """The result of `work`, done in a thread of its own, which is abandoned when the time is over.

    Raises:
        TimeoutError: it took longer.
        Exception: what `work` raised.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  raised again below, in the caller's thread
            errors.append(error)

    # A daemon: a thread that hangs must not keep the process from ending.
    thread = threading.Thread(target=run, name="trust", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    return results[0]
