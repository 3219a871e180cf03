"""A sampler at a step count, as a table of numbers with one row per network call (docs/decisions/0002)."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

HISTORY = 4
"""K: the newest latent and output and up to three before them; every multistep sampler in use fits."""

Column = npt.NDArray[np.float64]
Count = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """x[i+1] = sum_k X[i,k] x[i-k] + M[i,k] m[i-k] + S[i] noise[i], where m is the (guided) network output.

    n rows, one per network call; arrays are read-only float64.
    """

    timesteps: Column
    """(n,) the network's timestep input."""
    input_scale: Column
    """(n,) the network's input is input_scale * x."""
    x: Column
    """(n, K) X above."""
    m: Column
    """(n, K) M above."""
    noise: Column
    """(n,) S above."""
    draws: Count
    """(n,) noise tensors that diffusers draws from the generator in this row, 0 or 1: drawn even where S is 0."""
    denoised_x: Column
    denoised_m: Column
    """(n,) the clean estimate is denoised_x * x + denoised_m * m."""
    signal: Column
    sigma: Column
    """(n + 1,) the latent at the start of row i is signal * x0 + sigma * noise; the last entry is the final latent."""
    initial_scale: float
    """Text to image starts from initial_scale * unit noise."""
    step_of: Count
    """(n,) the step a row belongs to, from 0; Heun makes two calls a step."""
    steps: int

    packed: npt.NDArray[np.float32] = field(init=False, repr=False)
    """(n, 2 K + 5) x | m | noise | timestep | input_scale | denoised_x | denoised_m, for `advance.Rows`."""
    depth: Count = field(init=False, repr=False)
    """(n,) history entries that a row reads, 1 to K."""

    def __post_init__(self) -> None:
        columns = [self.noise, self.timesteps, self.input_scale, self.denoised_x, self.denoised_m]
        packed = np.concatenate([self.x, self.m, np.stack(columns, axis=1)], axis=1).astype(np.float32)
        used = (self.x != 0) | (self.m != 0)
        object.__setattr__(self, "packed", packed)
        object.__setattr__(self, "depth", np.maximum(1, HISTORY - np.argmax(used[:, ::-1], axis=1)))
        for array in (getattr(self, column.name) for column in fields(self)):
            if isinstance(array, np.ndarray):
                array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.timesteps)

    def first(self, steps: int) -> "Schedule":
        """Return the schedule's first `steps` steps."""
        rows = int((self.step_of < steps).sum())
        columns = ("timesteps", "input_scale", "x", "m", "noise", "draws", "denoised_x", "denoised_m", "step_of")
        ends: dict[str, Any] = {name: getattr(self, name)[:rows] for name in columns}
        ends |= {name: getattr(self, name)[: rows + 1] for name in ("signal", "sigma")}
        return replace(self, steps=steps, **ends)
