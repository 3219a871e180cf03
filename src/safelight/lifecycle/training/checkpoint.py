"""Training state on disk: written to a partial file, then renamed, so that a kill always leaves a whole file."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from safelight.lifecycle.training.averaging import Average


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace `path` by `state` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.rename(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state in `path`, or None where no run has saved one."""
    if not path.exists():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)


def snapshot(
    step: int, seconds: float, network: nn.Module, average: Average, optimizers: list[Optimizer]
) -> dict[str, Any]:
    """Everything that a run needs to resume exactly; `seconds` is its training time so far."""
    return {
        "step": step,
        "seconds": seconds,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }


def restore(
    state: dict[str, Any], network: nn.Module, average: Average, optimizers: list[Optimizer]
) -> tuple[int, float]:
    """Load a snapshot into network, average and optimizers; return its step and seconds."""
    network.load_state_dict(state["network"])
    average.load_state_dict(state["average"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        # Use the recipe's rates instead of the saved ones: they may have been changed for the rest of the run.
        rates = [group["full_rate"] for group in optimizer.param_groups]
        optimizer.load_state_dict(saved)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["full_rate"] = rate
    return int(state["step"]), float(state["seconds"])
