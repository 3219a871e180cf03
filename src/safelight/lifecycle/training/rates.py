"""The learning-rate schedule of a run that may be stopped and resumed: warm-up, constant, cool-down."""

import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """When a run ends: after a number of steps, at a moment (seconds since the epoch), or never."""

    steps: int | None = None
    moment: float | None = None

    def progress(self, step: int, started: float) -> float:
        """The completed fraction of the run, 0 to 1; always 0 in a run without an end."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = (time.time() - started) / max(self.moment - started, 1e-9) if self.moment else 0.0
        return min(1.0, max(by_steps, by_time))


def shared_progress(accelerator: Accelerator, until: Until, step: int, started: float) -> float:
    """The main process's progress, on every process: clocks differ slightly, and all must stop at the same step."""
    progress = torch.tensor([until.progress(step, started)], dtype=torch.float64)
    return float(broadcast(progress).item())  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


def rate_factor(step: int, *, warmup: int, progress: float, cooldown: float) -> float:
    """1 after a linear warm-up; falls linearly to 0 over the last `cooldown` fraction of a run with an end."""
    return min(1.0, (step + 1) / warmup, (1 - progress) / cooldown if cooldown else 1.0)
