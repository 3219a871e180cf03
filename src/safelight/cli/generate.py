"""`safelight generate`: words in, pictures out.

Everything that can be found wrong without a network is found before torch is imported, which takes seconds.
"""

import signal
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safelight.cli import hints as next_hints
from safelight.cli import options
from safelight.cli.draft_flags import DRAWING, FLAGS, PANELS, fields_of
from safelight.cli.from_fields import flags, values_of
from safelight.cli.options import OUTPUT
from safelight.cli.out import PictureFolder, require_writable
from safelight.errors import InvalidRequest, JobCancelled
from safelight.spec.interface import with_parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from safelight.assets.encode import Encoding
    from safelight.cli.screen import Screen
    from safelight.models.checkpoints.families import Description
    from safelight.prompts.expand import Expand
    from safelight.settings import Settings
    from safelight.spec import Draft
    from safelight.studio import Studio

STEPS_BETWEEN_PREVIEWS = 2
CHOICES = "Choices in the prompt"
EXAMPLES = """\
[bold]Examples[/]
  safelight generate "a red apple"
  safelight generate "a red apple" -n 4 --seed 7 --sampler "Euler a" --steps 30
  safelight generate "a red apple" --lora watercolour:0.8
  safelight generate "a green apple" --init pictures/a-red-apple-7.png --strength 0.6
  safelight generate "a worm" --init apple.png --mask hole.png --mask-blur 2
  safelight generate "a house" --control sketch.png:scribble-sd15:scribble:0.8 --model ./stable-diffusion-v1-5
  safelight generate "an orchard" --init apple.png --extend left=64,right=64
  safelight generate "a beach" --init apple.png --replace-background
  echo "a red apple" | safelight generate - --json"""


@with_parameters(flags(fields_of(), FLAGS, PANELS, DRAWING))
def generate(
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT", help="Prompt: what to draw; (word:1.2) weighs a word. [bold]-[/] reads it from stdin."
        ),
    ],
    model: options.Model = "mini",
    *,
    n: Annotated[
        int, typer.Option("-n", "--number", min=1, max=1000, help="How many pictures, with seeds SEED, SEED + 1, ...")
    ] = 1,
    wildcards: Annotated[
        bool,
        typer.Option(
            "--wildcards",
            help="Pick one option of {red|blue} and one line of __colour__ at random.",
            rich_help_panel=CHOICES,
        ),
    ] = False,
    combinatorial: Annotated[
        bool,
        typer.Option("--combinatorial", help="Draw every combination of them, N of each.", rich_help_panel=CHOICES),
    ] = False,
    out: options.Out = Path("pictures"),
    format: options.Format = "png",  # noqa: A002  the option's name
    quality: options.Quality = 90,
    metadata: options.Detail = "full",
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    preview: Annotated[
        bool, typer.Option("--preview/--no-preview", help="Show previews while drawing.", rich_help_panel=OUTPUT)
    ] = True,
    hints: Annotated[
        bool | None,
        typer.Option(
            "--hints/--no-hints",
            help="Suggest commands to try next.",
            show_default="on a terminal",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    **given: Any,
) -> None:
    """Generate pictures from a prompt, and write them to --out.

    Files are named after prompt and seed, and contain the settings to draw the picture again (`safelight replay`).
    """
    from safelight.assets.encode import Encoding
    from safelight.diffusion.samplers import add_samplers
    from safelight.models.registry.registered_models import open_catalogue
    from safelight.plugins import Plugins
    from safelight.prompts.expand import expand_draft
    from safelight.resolve.check import check
    from safelight.settings import Settings
    from safelight.spec import parse_draft

    terminal = sys.stdout.isatty() and not (as_json or quiet)
    preview_every = STEPS_BETWEEN_PREVIEWS if terminal and preview and shows_colours() else None
    settings = Settings.from_environment(device=device, dtype=dtype, preview_every=preview_every)
    from_stdin = prompt == "-"
    fields = {"prompt": sys.stdin.read().strip() if from_stdin else prompt, "model": model}
    fields |= values_of(given, fields_of(), FLAGS, settings)
    for control in fields.get("controls", ()):
        control["fit"] = given["fit"]
    draft = parse_draft(fields)
    plugins = Plugins(on=settings.plugins)
    add_samplers(plugins)
    model_known = check(draft, open_catalogue(settings), plugins)
    if model_known and not quiet:
        say_of_size(draft, model_known)
    drafts = expand_draft(draft, n, expand=expansion(wildcards, combinatorial), folder=settings.wildcards)
    require_writable((settings.blobs, out))

    encoding = Encoding(format=format, quality=quality, metadata=metadata)
    with opened_screen(len(drafts), loading=model) if terminal else nullcontext() as screen:
        album = PictureFolder(out, as_json=as_json, quiet=quiet, say=screen.print if screen else typer.echo)
        draw_into(album, drafts, settings, encoding=encoding, screen=screen)
    if hints or (hints is None and terminal):
        last = album.drawn[-1]
        for line in next_hints.after(last.spec, album.paths[-1], from_stdin=from_stdin):
            typer.echo(line)


def expansion(wildcards: bool, combinatorial: bool) -> "Expand | None":
    if wildcards and combinatorial:
        raise InvalidRequest(
            "--wildcards picks at random and --combinatorial draws all combinations: use only one of them"
        )
    return "combinatorial" if combinatorial else "wildcards" if wildcards else None


def say_of_size(draft: "Draft", model: "Description") -> None:
    from safelight.models.checkpoints.sizes import size_warning

    if note := size_warning(draft, model):
        typer.echo(f"note: {note}", err=True)


def shows_colours() -> bool:
    from rich.console import Console

    console = Console()
    return console.color_system == "truecolor" and not console.no_color


def opened_screen(pictures: int, *, loading: str) -> "Screen":
    from safelight.cli.screen import Screen

    screen = Screen(pictures)
    screen.wait_for(f"loading {loading}")
    return screen


def draw_into(
    album: PictureFolder,
    drafts: "Sequence[Draft]",
    settings: "Settings",
    *,
    encoding: "Encoding",
    screen: "Screen | None",
) -> None:
    """Draw all drafts together, and write each picture when it is finished.

    Raises:
        JobCancelled: Ctrl-C; finished pictures are written. A second Ctrl-C ends the process at once.
    """
    try:
        import asyncio

        from safelight.api import draw, unwrapped
        from safelight.studio import open_studio

        async def draw_one(picture: int, draft: "Draft", studio: "Studio") -> None:
            on_event = partial(screen.on_event, picture) if screen else unheard
            album.put(await draw(draft, studio, encoding=encoding, on_event=on_event), studio.assets)

        async def draw_all(studio: "Studio") -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for picture, draft in enumerate(drafts):
                        group.create_task(draw_one(picture, draft, studio))
            except asyncio.CancelledError:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                raise

        with open_studio(settings) as studio:
            unwrapped(draw_all(studio))
    except KeyboardInterrupt:
        finished = f"{len(album.paths)} of {len(drafts)} picture{'s' * (len(drafts) > 1)}"
        which = f"kept: {', '.join(map(str, album.paths))}" if album.paths else "nothing was finished"
        raise JobCancelled(f"Stopped after {finished}; {which}") from None


def unheard(_event: object) -> None:
    pass
