"""The program `safelight`: its commands and how it introduces itself."""

from typing import Annotated

import typer

from safelight import __version__
from safelight.cli import models, samplers
from safelight.cli.bench import bench
from safelight.cli.doctor import doctor
from safelight.cli.errors import Program
from safelight.cli.generate import generate
from safelight.cli.info import info
from safelight.cli.replay import replay
from safelight.cli.upscale import upscale

EXAMPLES = """\
[bold]Examples[/]
  safelight generate "a red apple"
  safelight generate "a red apple" -n 4 --seed 7 --steps 30
  safelight info pictures/a-red-apple-7.png
  safelight replay pictures/a-red-apple-7.png
  safelight COMMAND --help"""

app = typer.Typer(
    cls=Program,
    name="safelight",
    epilog=EXAMPLES,
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"safelight {__version__}")
        raise typer.Exit


@app.callback()
def introduce(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=show_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Stable Diffusion from words to a stored, replayable picture."""


PICTURES, PARTS, MACHINE = "Pictures", "What there is", "This machine"
for command, panel in (
    (generate, PICTURES),
    (replay, PICTURES),
    (info, PICTURES),
    (upscale, PICTURES),
    (doctor, MACHINE),
    (bench, MACHINE),
):
    app.command(epilog=EPILOGS[command], rich_help_panel=panel)(command)
app.add_typer(samplers.app, rich_help_panel=PARTS)
app.add_typer(models.app, rich_help_panel=PARTS)
