"""`safelight control`: which nets and preprocessors there are, and what a preprocessor makes of a picture."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safelight.cli import options
from safelight.errors import InvalidRequest

if TYPE_CHECKING:
    from safelight.models.networks.placement import Placement

EXAMPLES = """\
[bold]Examples[/]
  safelight control list
  safelight control hint apple.png canny
  safelight control hint apple.png canny --thresholds 50,150 --out lines.png
"""
KINDS = {
    "control": "ControlNets and T2I-Adapters (--control)",
    "ip-adapter": "IP-Adapters (--ip)",
    "image-encoder": "Image encoders of IP-Adapters",
    "face-model": "Face models of FaceID adapters",
    "depth": "Depth models (preprocessor depth)",
}

app = typer.Typer(
    name="control", help="List ControlNets, IP-Adapters and preprocessors, or preview a control image.", epilog=EXAMPLES
)


@app.callback(invoke_without_command=True)
def control(ctx: typer.Context, as_json: options.Json = False) -> None:
    if ctx.invoked_subcommand is None:
        list_nets(as_json=as_json)


@app.command("list", epilog=EXAMPLES)
def list_nets(as_json: options.Json = False) -> None:
    """List ControlNets, T2I-Adapters, IP-Adapters and preprocessors."""
    from safelight.models.checkpoints.control_folder import FOLDERS, ControlFolder
    from safelight.models.registry.registered_models import open_catalogue
    from safelight.models.vision.preprocessors import PREPROCESSORS
    from safelight.settings import Settings

    settings = Settings.from_environment()
    folder = ControlFolder(open_catalogue(settings))
    for kind, title in KINDS.items():
        paths = folder.paths(kind)  # pyright: ignore[reportArgumentType]
        if as_json:
            for name, path in paths.items():
                typer.echo(json.dumps({"kind": kind, "name": name, "path": str(path)}))
            continue
        typer.echo(f"{title}:")
        for name, path in paths.items():
            typer.echo(f"  {name}  {path}")
        if not paths:
            where = " or ".join(str(settings.home / place) for place in FOLDERS[kind])  # pyright: ignore
            what = "ONNX files" if kind == "face-model" else "safetensors files and diffusers folders"
            typer.echo(f"  none; put {what} into {where}")
    if as_json:
        for name, what in PREPROCESSORS.items():
            typer.echo(json.dumps({"kind": "preprocessor", "name": name, "what": what}))
        return
    typer.echo("Preprocessors:")
    for name, what in PREPROCESSORS.items():
        typer.echo(f"  {name:10} {what}")


@app.command(epilog=EXAMPLES)
def hint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A picture.")],
    preprocessor: Annotated[str, typer.Argument(metavar="PREPROCESSOR", help="A name of `safelight control list`.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", show_default="FILE-PREPROCESSOR.png, beside it")
    ] = None,
    thresholds: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH", help="Thresholds of canny, 0 to 255.", show_default="100,200")
    ] = None,
    device: options.Device = None,
) -> None:
    """Make the control image that a ControlNet would read, to inspect or retouch it."""
    from safelight.imaging.open_image import open_image
    from safelight.models.checkpoints.control_folder import ControlFolder
    from safelight.models.registry.registered_models import open_catalogue
    from safelight.models.vision.preprocessors import Preprocessors, require_preprocessor
    from safelight.settings import Settings

    settings = Settings.from_environment(device=device)
    require_preprocessor(preprocessor)
    limits = two_numbers(thresholds)
    image = open_image(file, max_pixels=settings.max_pixels, max_file_bytes=settings.max_file_bytes, trusted=True)
    folder = ControlFolder(open_catalogue(settings))

    def placement() -> "Placement":
        from safelight.models.networks.placement import choose_placement

        return choose_placement(settings.device, settings.dtype)

    made = Preprocessors(folder, placement).make_hint(preprocessor, image, thresholds=limits)
    path = out or file.with_name(f"{file.stem}-{preprocessor.replace('/', '-')}.png")
    made.save(path)
    typer.echo(str(path))


def two_numbers(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InvalidRequest(
            f"--thresholds needs two numbers separated by a comma, such as 100,200, not {text!r}"
        ) from None
    return low, high
