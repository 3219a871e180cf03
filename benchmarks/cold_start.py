"""From the shell to a file on disk: `safelight generate` against the shortest diffusers script that does the same.

    python benchmarks/cold_start.py [REPEATS]

Both load the embedded model and draw one picture with the same seed, steps and guidance; in turn, a new process each.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import Report, ratio

from safelight.models.checkpoints.catalogue import MINI

SCRIPT = f"""
import torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained({str(MINI)!r})
generator = torch.Generator("cpu").manual_seed(7)
pipeline("a red apple", num_inference_steps=20, guidance_scale=4.0, generator=generator).images[0].save("apple.png")
"""
COMMAND = "generate 'a red apple' --seed 7 --steps 20 --guidance 4 --sampler Default --out . --quiet"


def seconds(command: list[str] | str, *, folder: str, environment: dict[str, str]) -> float:
    began = time.perf_counter()
    shell = isinstance(command, str)
    subprocess.run(command, shell=shell, cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - began


def main(repeats: int) -> None:
    import os

    report = Report("cold_start", "From the shell to a picture on disk, embedded model, 20 steps")
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ) | {"SAFELIGHT_HOME": str(Path(folder) / "home"), "HF_HUB_OFFLINE": "1"}
        safelight = f"{Path(sys.executable).parent / 'safelight'} {COMMAND}"
        script = [sys.executable, "-W", "ignore", "-c", SCRIPT]
        first = seconds(safelight, folder=folder, environment=environment)  # also compiles and keeps the schedule
        seconds(script, folder=folder, environment=environment)  # warms the disk cache for both
        pairs = [
            (
                seconds(script, folder=folder, environment=environment),
                seconds(safelight, folder=folder, environment=environment),
            )
            for _ in range(repeats)
        ]
    peer, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
    note = f"at most 0.75, aim 0.60; medians of {repeats}; the very first run on a machine took {first:.1f} s"
    report.row("one picture, s", peer=peer, ours=ours, ratio=ratio(ours, peer), note=note)
    report.finish()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
