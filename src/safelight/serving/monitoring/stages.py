"""The time of a job's stages, derived from its events.

    Queued --encode--> Started --denoise--> Stepped* --decode--> Decoded --store--> Stored

`encode` includes waiting for the engine's next call. An upscaled picture has only `store`.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from safelight.events import Cancelled, Decoded, Event, Failed, Queued, Started, Stepped, Stored

T = TypeVar("T")
STAGES = ("encode", "denoise", "decode", "store")
MAX_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    name: str
    began: float
    """Seconds since the epoch."""
    ended: float

    @property
    def seconds(self) -> float:
        return max(0.0, self.ended - self.began)


class Stages:
    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.marks: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By job: when its current stage began, and when its last step ended."""

    def ended_by(self, job_id: str, event: Event) -> list[Stage]:
        """The stages that this event ends."""
        now = self.clock()
        began, stepped = self.marks.get(job_id, (now, now))
        match event:
            case Queued():
                self.mark(job_id, now, now)
            case Started():
                self.mark(job_id, now, now)
                return [Stage(name="encode", began=began, ended=now)]
            case Stepped():
                self.mark(job_id, began, now)
            case Decoded():
                known = job_id in self.marks
                self.mark(job_id, now, now)
                if known:
                    denoise = Stage(name="denoise", began=began, ended=stepped)
                    return [denoise, Stage(name="decode", began=stepped, ended=now)]
            case Stored():
                self.forget(job_id)
                return [Stage(name="store", began=began, ended=now)]
            case Failed() | Cancelled():
                self.forget(job_id)
            case _:
                pass
        return []

    def mark(self, job_id: str, began: float, stepped: float) -> None:
        remember(self.marks, job_id, (began, stepped))

    def forget(self, job_id: str) -> None:
        self.marks.pop(job_id, None)


def remember(items: OrderedDict[str, T], key: str, value: T) -> None:
    """Store a value; beyond MAX_REMEMBERED drop the oldest: jobs that end in another process are never removed."""
    items[key] = value
    if len(items) > MAX_REMEMBERED:
        items.popitem(last=False)
