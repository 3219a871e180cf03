"""`safelight upscale`: a picture made larger, on the same path as every other picture."""

import json
from pathlib import Path
from typing import Annotated

import typer

from safelight.cli import options
from safelight.cli.kept import kept
from safelight.cli.once import finish
from safelight.cli.out import copy_out, require_writable

EXAMPLES = """\
[bold]Examples[/]
  safelight upscale apple.png
  safelight upscale apple.png --scale 4 --format webp --out large"""


def upscale(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A PNG, JPEG, WebP or GIF picture.")],
    scale: Annotated[float, typer.Option("--scale", "-x", help="How many times as large, above 1 and up to 8.")] = 2.0,
    out: options.Out = Path("pictures"),
    format: options.Format = "png",  # noqa: A002  the option's name
    quality: options.Quality = 90,
    metadata: options.Detail = "full",
    as_json: options.Json = False,
) -> None:
    """Make a picture larger by Lanczos resampling: sharp and quick, and invents nothing."""
    from safelight.assets.encode import Encoding
    from safelight.settings import Settings
    from safelight.spec import Upscale, parse_spec

    settings = Settings.from_environment()
    require_writable((settings.blobs, out))
    spec = parse_spec({"task": "upscale", "init": kept(file, settings), "scale": scale})
    assert isinstance(spec, Upscale)

    from safelight.pictures import run
    from safelight.studio import open_studio

    with open_studio(settings) as studio:
        encoding = Encoding(format=format, quality=quality, metadata=metadata)
        large = run(finish(spec, studio, encoding))
        path = copy_out(studio.assets, large.asset_id, out, f"{file.stem}-x{scale:g}")
    width, height = large.image.size
    if as_json:
        said = {"path": str(path.absolute()), "width": width, "height": height, "spec_digest": spec.digest()}
        typer.echo(json.dumps(said | {"seconds": round(large.seconds, 3)}))
    else:
        typer.echo(f"{path}  {width}x{height}")
