"""The program `safelight`: its commands and how it introduces itself."""

import atexit
import gc
from typing import Annotated

import typer

from safelight.cli import (
    bench,
    compare,
    control,
    doctor,
    evaluate,
    forget,
    generate,
    info,
    keys,
    lora,
    mcp,
    models,
    plugins,
    replay,
    samplers,
    serve,
    train,
    trust,
    upscale,
    verify,
)
from safelight.cli.errors import SafelightCommands
from safelight.version import __version__

EXAMPLES = """\
[bold]Examples[/]
  safelight generate "a red apple"
  safelight generate "a red apple" -n 4 --seed 7 --steps 30
  safelight info pictures/a-red-apple-7.png
  safelight replay pictures/a-red-apple-7.png
  safelight COMMAND --help"""

app = typer.Typer(
    cls=SafelightCommands,
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
        bool, typer.Option("--version", "-V", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Stable Diffusion, from a prompt to a stored picture that can be drawn again."""
    # Python ends by looking for garbage among all of torch, which takes a second or two; what is left then may stay.
    atexit.register(gc.freeze)


PICTURES, SERVER, PARTS, MACHINE = "Pictures", "Serving others", "What there is", "This machine"
app.command("generate", epilog=generate.EXAMPLES, rich_help_panel=PICTURES)(generate.generate)
app.command("replay", epilog=replay.EXAMPLES, rich_help_panel=PICTURES)(replay.replay)
app.command("upscale", epilog=upscale.EXAMPLES, rich_help_panel=PICTURES)(upscale.upscale)
app.command("info", epilog=info.EXAMPLES, rich_help_panel=PICTURES)(info.info)
app.command("verify", epilog=verify.EPILOG, rich_help_panel=PICTURES)(verify.verify)
app.command("serve", epilog=serve.EXAMPLES, rich_help_panel=SERVER)(serve.serve)
app.command("mcp", epilog=mcp.EXAMPLES, rich_help_panel=SERVER)(mcp.mcp)
app.add_typer(keys.app, rich_help_panel=SERVER)
app.command("forget", epilog=forget.EXAMPLES, rich_help_panel=SERVER)(forget.forget)
app.add_typer(trust.app, rich_help_panel=SERVER)
app.add_typer(models.app, rich_help_panel=PARTS)
app.add_typer(train.app, rich_help_panel=PARTS)
app.add_typer(lora.app, rich_help_panel=PARTS)
app.add_typer(control.app, rich_help_panel=PARTS)
app.add_typer(evaluate.app, rich_help_panel=PARTS)
app.command("audit", epilog=compare.AUDIT, rich_help_panel=PARTS)(compare.audit)
app.add_typer(samplers.app, rich_help_panel=PARTS)
app.command("plugins", epilog=plugins.EXAMPLES, rich_help_panel=PARTS)(plugins.plugins)
app.command("doctor", epilog=doctor.EXAMPLES, rich_help_panel=MACHINE)(doctor.doctor)
app.command("bench", epilog=bench.EXAMPLES, rich_help_panel=MACHINE)(bench.bench)
