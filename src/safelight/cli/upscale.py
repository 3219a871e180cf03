"""`safelight upscale`: a picture made larger, on the same path as every other picture."""

import json
from pathlib import Path
from typing import Annotated

import typer

from safelight.cli import options
from safelight.cli.kept import kept
from safelight.cli.once import finish
from safelight.cli.out import copy_out, require_writable
from safelight.errors import UnsupportedOption

DIFFUSION = "diffusion"
"""Not a method of resampling: the model draws the larger picture over, tile by tile."""
DRAWN = "With --method diffusion"
EXAMPLES = """\
[bold]Examples[/]
  safelight upscale apple.png
  safelight upscale apple.png --scale 4 --method realesrgan-x4plus --format webp --out large
  safelight upscale apple.png --method diffusion --prompt "a red apple" --strength 0.3"""


def upscale(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A PNG, JPEG, WebP, AVIF or GIF picture.")],
    scale: Annotated[float, typer.Option("--scale", "-x", help="How many times as large, above 1 and up to 8.")] = 2.0,
    method: Annotated[
        str,
        typer.Option(
            help="[bold]lanczos[/] adds no detail; realesrgan-x4plus, realesrgan-x4plus-anime, realesr-animevideov3 "
            "or a network of SAFELIGHT_HOME/upscalers sharpens; [bold]diffusion[/] draws over, in tiles."
        ),
    ] = "lanczos",
    prompt: Annotated[str, typer.Option(help="Prompt: what the picture shows.", rich_help_panel=DRAWN)] = "",
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model that redraws the picture.", rich_help_panel=DRAWN)
    ] = "mini",
    strength: Annotated[
        float, typer.Option(help="Denoising strength: how far to depart from the picture.", rich_help_panel=DRAWN)
    ] = 0.35,
    seed: Annotated[int | None, typer.Option("--seed", "-s", show_default="random", rich_help_panel=DRAWN)] = None,
    steps: Annotated[int | None, typer.Option(show_default="the model's own", rich_help_panel=DRAWN)] = None,
    tile: Annotated[
        int | None,
        typer.Option(help="Side of a tile, in pixels.", show_default="the model's own", rich_help_panel=DRAWN),
    ] = None,
    overlap: Annotated[int, typer.Option(help="Overlap of tiles, in pixels.", rich_help_panel=DRAWN)] = 32,
    upscaler: Annotated[
        str, typer.Option(help="Method that enlarges the picture first.", rich_help_panel=DRAWN)
    ] = "lanczos",
    out: options.Out = Path("pictures"),
    format: options.Format = "png",  # noqa: A002  the option's name
    quality: options.Quality = 90,
    metadata: options.Detail = "full",
    as_json: options.Json = False,
) -> None:
    """Enlarge a picture: by resampling, by a network, or by redrawing it in tiles."""
    from safelight.assets.encode import Encoding
    from safelight.settings import Settings
    from safelight.spec import Draft, Upscale, parse_draft, parse_spec

    settings = Settings.from_environment()
    require_writable((settings.blobs, out))
    init = kept(file, settings)
    request: Draft | None = None
    if method == DIFFUSION:
        tiles = {"side": tile, "overlap": overlap, "upscaler": upscaler}
        given = {"prompt": prompt, "model": model, "strength": strength, "seed": seed, "steps": steps}
        given |= {"init": init, "scale": scale, "tiles": tiles}
        request = parse_draft({name: value for name, value in given.items() if value is not None})
    else:
        if prompt:
            raise UnsupportedOption("--prompt", f"{method} does not use a prompt; add --method {DIFFUSION}")
        # What is wrong with them is said before torch is there.
        parse_spec({"task": "upscale", "init": init, "scale": scale, "method": method})

    from safelight.api import run
    from safelight.resolve.resolve import resolve_upscale
    from safelight.studio import open_studio

    with open_studio(settings) as studio:
        assert init is not None
        spec: Draft | Upscale = request or resolve_upscale(init, scale, method, studio)
        encoding = Encoding(format=format, quality=quality, metadata=metadata)
        large = run(finish(spec, studio, encoding))
        path = copy_out(studio.assets, large.asset_id, out, f"{file.stem}-x{scale:g}")
    width, height = large.image.size
    if as_json:
        said = {"path": str(path.absolute()), "width": width, "height": height}
        said |= {"spec_digest": spec.digest()} if isinstance(spec, Upscale) else {}
        typer.echo(json.dumps(said | {"seconds": round(large.seconds, 3)}))
    else:
        typer.echo(f"{path}  {width}x{height}")
