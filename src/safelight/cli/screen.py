"""What a terminal shows while pictures are drawn: what is being waited for, how fast it goes, and a first look."""

import time
from types import TracebackType
from typing import Self

from PIL import Image
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from safelight.events import Event, Previewed, Started, Stepped

PREVIEW_COLUMNS = 32


class Screen:
    """Shows the progress of several pictures at once, and clears itself when it closes."""

    def __init__(self, pictures: int) -> None:
        self.console = Console()
        self.pictures = pictures
        self.totals: dict[int, int] = {}
        self.steps: dict[int, int] = {}
        self.previews: dict[int, HalfBlocks] = {}
        self.began = 0.0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[pace]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            expand=True,
        )
        self.task = self.bar.add_task("starting", total=None, pace="")
        self.live = Live(get_renderable=self.render, console=self.console, transient=True, refresh_per_second=8)

    def wait_for(self, what: str) -> None:
        self.bar.update(self.task, description=what)

    def print(self, line: str) -> None:
        """A line that stays, above what moves."""
        self.console.print(Text(line), soft_wrap=True)

    def on_event(self, picture: int, event: Event) -> None:
        match event:
            case Started():
                self.began = self.began or time.monotonic()
                self.totals[picture] = event.total_steps
            case Stepped():
                self.steps[picture] = event.step
                self.update()
            case Previewed():
                self.previews[picture] = HalfBlocks(event.image)
            case _:
                pass

    def update(self) -> None:
        done = sum(self.steps.values())
        # Those still waiting are taken to be as long as those that run.
        total = sum(self.totals.values()) * self.pictures // len(self.totals)
        rate = done / max(time.monotonic() - self.began, 1e-6)
        pictures = "picture" if self.pictures == 1 else f"{self.pictures} pictures"
        pace = f"step {done} of {total}, {rate:.1f} steps/s"
        self.bar.update(self.task, description=f"drawing {pictures}", completed=done, total=total, pace=pace)

    def render(self) -> Group:
        shown = [self.previews[picture] for picture in sorted(self.previews)][: self.fitting()]
        return Group(Columns(shown, padding=(0, 1)), self.bar) if shown else Group(self.bar)

    def fitting(self) -> int:
        """One row of previews: more would push the bar off small terminals."""
        return max(1, self.console.width // (PREVIEW_COLUMNS + 1))

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.live.stop()


class HalfBlocks:
    """A picture in text: an upper half block has two colours, so each character cell shows two pixels."""

    def __init__(self, image: Image.Image) -> None:
        width, height = PREVIEW_COLUMNS, max(2, round(PREVIEW_COLUMNS * image.height / image.width / 2) * 2)
        self.image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self.image.width, self.image.width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        pixels = self.image.tobytes()
        width, height = self.image.size
        colours = ["#" + pixels[at : at + 3].hex() for at in range(0, len(pixels), 3)]
        for top in range(0, height * width, 2 * width):
            for at in range(top, top + width):
                yield Segment("▀", Style(color=colours[at], bgcolor=colours[at + width]))
            yield Segment.line()
