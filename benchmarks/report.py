"""Prints a benchmark's table and writes it to benchmarks/results/."""

import datetime
import os
import platform
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass
class Report:
    name: str
    title: str
    peer: str = "diffusers"
    lines: list[str] = field(default_factory=list[str])

    def row(
        self, what: str, *, peer: float | None = None, ours: float | None = None, ratio: str = "", note: str = ""
    ) -> None:
        numbers = ("" if number is None else f"{number:.3g}" for number in (peer, ours))
        line = f"| {what} | {' | '.join(numbers)} | {ratio} | {note} |"
        self.lines.append(line)
        print(line, flush=True)

    def finish(self) -> None:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        text = "\n".join(
            [
                f"# {self.title}",
                "",
                f"{today}, {processor()}, {os.cpu_count()} cores, Python {platform.python_version()},",
                f"torch {version('torch')}, diffusers {version('diffusers')}. Command: `python {' '.join(sys.argv)}`.",
                "Both sides were measured in turn in one run; the machine is shared, so read the ratios.",
                "",
                f"| what | {self.peer} | safelight | ratio | |",
                "|---|---|---|---|---|",
                *self.lines,
                "",
            ]
        )
        RESULTS.mkdir(exist_ok=True)
        machine = f"{platform.machine()}-{os.cpu_count()}cores"
        path = RESULTS / f"{self.name}_{machine}_{today}.md"
        path.write_text(text)
        print(f"\n{text}\nwritten to {path}")


def ratio(of: float, to: float) -> str:
    return f"{of / to:.2f}x"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
