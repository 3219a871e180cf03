"""`safelight train`: fine-tune a model, or train one from scratch."""

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
        typer.Argument(help="A single stage. `adopt` copies the autoencoder and the tokenizer of --folder."),
    ] = "all",
    out: Annotated[Path, typer.Option(help="Folder of the run: data, checkpoints, logs.")] = Path("mini-run"),
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Training time, with the rates falling to zero at its end; default: until killed."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Train to this step.")] = None,
    processes: Annotated[
        int,
        typer.Option(min=1, help="Processes of one thread each that share a batch; 1: one process with all threads."),
    ] = 1,
    weights: Annotated[Path | None, typer.Option(help="Start from the weights of this diffusers folder.")] = None,
    name: Annotated[str, typer.Option(help="Name of the exported model.")] = "my-mini",
    folder: Annotated[
        Path | None,
        typer.Option(help="Model folder that export and image-encoder write and adopt reads; replaces --name."),
    ] = None,
    grid: Annotated[
        Path | None,
        typer.Option(help="With the stage `export`: draw fixed prompts and seeds as a grid into this file."),
    ] = None,
    curve: Annotated[
        Path | None, typer.Option(help="With the stage `export`: write the loss curves of the run to this SVG file.")
    ] = None,
    moment: Annotated[float | None, typer.Option(hidden=True)] = None,
) -> None:
    """Train a model like the embedded one from scratch, from openly licensed artwork to a model for `generate`.

    This takes hours on a laptop. A killed run resumes where it was. The artwork comes from npm; TensorBoard shows the
    curves: tensorboard --logdir mini-run.
    """
    from safelight.settings import Settings

    with needing("train"):
        from safelight.lifecycle.mini.scratch import ScratchOptions, train_all, train_stage

    scratch_options = ScratchOptions(
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
        train_all(scratch_options, processes=processes)
    else:
        single: Stage = stage
        train_stage(single, scratch_options, processes=processes)
