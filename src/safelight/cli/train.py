"""`safelight train`: models of your own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from safelight.cli import tune
from safelight.errors import needing

if TYPE_CHECKING:
    from safelight.lifecycle.mini.scratch import Stage

EXAMPLES = """\
[bold]Examples[/]
  safelight train scratch --minutes 600 --name my-mini
  safelight train scratch denoiser --minutes 60
  safelight train scratch export --folder my-mini --grid grid.png
  safelight train scratch image-encoder --folder my-mini --minutes 12"""

app = typer.Typer(name="train", help="Train models.", no_args_is_help=True)


@app.callback()
def introduce() -> None:
    """Train models."""


tune.add_commands(app)


@app.command(epilog=EXAMPLES)
def scratch(
    stage: Annotated[
        Literal["all", "artwork", "autoencoder", "denoiser", "styling", "decoder", "export", "image-encoder", "adopt"],
        typer.Argument(help="One stage alone. `adopt` takes over what --folder has of an autoencoder and a tokenizer."),
    ] = "all",
    out: Annotated[Path, typer.Option(help="Folder of the run: data, checkpoints, logs.")] = Path("mini-run"),
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Train so long, the rates falling to zero before; default: until killed."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Train to this step.")] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes of one thread each that share a batch; 1: one with all threads.")
    ] = 1,
    weights: Annotated[Path | None, typer.Option(help="Begin from the weights of this diffusers folder.")] = None,
    name: Annotated[str, typer.Option(help="What the model is called once it is exported.")] = "my-mini",
    folder: Annotated[
        Path | None,
        typer.Option(help="Model folder that export and image-encoder write and adopt reads, in the place of --name."),
    ] = None,
    grid: Annotated[Path | None, typer.Option(help="Where export draws fixed prompts with fixed seeds.")] = None,
    curve: Annotated[Path | None, typer.Option(help="Where export draws the errors of the run, as SVG.")] = None,
    moment: Annotated[float | None, typer.Option(hidden=True)] = None,
) -> None:
    """Train a model like the embedded one, from openly licensed artwork to a model that `generate` can draw with.

    Hours, on a laptop. A run that was killed goes on where it was. The artwork comes from npm; TensorBoard shows the
    curves: tensorboard --logdir mini-run.
    """
    from safelight.settings import Settings

    with needing("train"):
        from safelight.lifecycle.mini.scratch import ScratchOptions, train_all, train_stage

    orders = ScratchOptions(
        out=out,
        minutes=minutes,
        steps=steps,
        weights=weights,
        folder=folder or (None if stage == "adopt" else Settings.from_environment().models / name),
        grid=grid,
        curve=curve,
        moment=moment,
    )
    if stage == "all":
        train_all(orders, processes=processes)
    else:
        one: Stage = stage
        train_stage(one, orders, processes=processes)
