"""Time of `safelight generate`, from start to file, against the shortest diffusers script that does the same.

    python benchmarks/cold_start.py [REPEATS] [--before SRC]

Both load the embedded model and draw one picture with the same seed, steps and guidance; in turn, a new process each.
SRC is the `src` of another checkout, whose command and `--help` are then timed in the same turns.
"""

import argparse
import os
import resource
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


def help_cpu(environment: dict[str, str]) -> float:
    """Seconds of CPU that `safelight --help` takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "safelight", "--help"], env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(repeats: int, before: Path | None) -> None:
    report = Report("cold_start", "From the shell to a picture on disk, embedded model, 20 steps")
    with tempfile.TemporaryDirectory() as folder:
        ours = dict(os.environ) | {"SAFELIGHT_HOME": str(Path(folder) / "home"), "HF_HUB_OFFLINE": "1"}
        theirs = ours | {"SAFELIGHT_HOME": str(Path(folder) / "before"), "PYTHONPATH": str(before)}
        safelight = f"{sys.executable} -m safelight {COMMAND}"
        script = [sys.executable, "-W", "ignore", "-c", SCRIPT]
        sides = {"peer": (script, ours), "ours": (safelight, ours)} | (
            {"before": (safelight, theirs)} if before else {}
        )
        # The first run compiles and caches the schedule, and warms the disk cache.
        first = {name: seconds(command, folder=folder, environment=where) for name, (command, where) in sides.items()}
        turns = [
            {name: seconds(command, folder=folder, environment=where) for name, (command, where) in sides.items()}
            for _ in range(repeats)
        ]
        helps = [(help_cpu(ours), help_cpu(theirs)) for _ in range(repeats)] if before else []
    median = {name: statistics.median(turn[name] for turn in turns) for name in sides}
    note = f"at most 0.75, aim 0.60; medians of {repeats}; the very first run took {first['ours']:.1f} s"
    report.row(
        "one picture, s",
        peer=median["peer"],
        ours=median["ours"],
        ratio=ratio(median["ours"], median["peer"]),
        note=note,
    )
    if before:
        was, now = median["before"], median["ours"]
        report.row("one picture, against the checkout before, s", peer=was, ours=now, ratio=ratio(now, was), note="")
        now, was = (statistics.median(side) for side in zip(*helps, strict=True))
        report.row(
            "safelight --help, s of CPU, likewise", peer=was, ours=now, ratio=ratio(now, was), note="at most 0.5 s"
        )
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("repeats", type=int, nargs="?", default=5)
    parser.add_argument("--before", type=Path)
    arguments = parser.parse_args()
    main(arguments.repeats, arguments.before)
