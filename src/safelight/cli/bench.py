"""`safelight bench`: how much this machine computes in one call, remembered; and how long a picture takes."""

import json
import time
from typing import Annotated, Any

import typer

from safelight.cli import options

EXAMPLES = """\
[bold]Examples[/]
  safelight bench
  safelight bench --model ./stable-diffusion-v1-5 --steps 20"""


def bench(
    model: options.Model = "mini",
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Sampling steps of the timed picture.", show_default="the model's own"),
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> None:
    """Measure how many pictures to draw in one network call, and store the result; then time one picture.

    The engine reads the result the next time it opens this model here. Run it on a machine that does nothing else.
    """
    from safelight.settings import Settings

    settings = Settings.from_environment(device=device, dtype=dtype)

    from safelight.api import generate
    from safelight.models.backends.budget import measure, remember
    from safelight.models.backends.packed import denoiser_for
    from safelight.studio import open_studio

    calls: list[dict[str, Any]] = []

    def report(rows: int, seconds: float) -> None:
        calls.append({"rows": rows, "seconds": round(seconds, 6), "rows_per_second": round(rows / seconds, 3)})
        if not as_json:
            typer.echo(f"{rows:>6}  {seconds:>12.4f}  {rows / seconds:>13.1f}")

    with open_studio(settings) as studio:
        found = studio.models.find(model)
        began = time.perf_counter()
        loaded = studio.models.get(model, found.digest)
        load_s = time.perf_counter() - began
        defaults = found.description.defaults
        if not as_json:
            typer.echo(f"{model} on {loaded.placement}, rows of {defaults.width}x{defaults.height}\n")
            typer.echo(f"{'rows':>6}  {'seconds/call':>12}  {'rows/second':>13}")
        budget = measure(loaded, denoiser_for(loaded), report=report)
        remember(settings.cache / "budgets.json", loaded, budget)
        fields: dict[str, Any] = {"prompt": "a red apple", "model": model, "seed": 7}
        generate(**fields, steps=1, studio=studio)  # pays for what is set up once
        began = time.perf_counter()
        [drawn] = generate(**fields, steps=steps, studio=studio)
        picture_s = time.perf_counter() - began
    best_rows = round(budget / (defaults.width * defaults.height / 1e6))
    if as_json:
        said = {"model": model, "model_digest": found.digest, "placement": str(loaded.placement), "calls": calls}
        said |= {"budget_megapixels": budget, "load_seconds": round(load_s, 3)}
        typer.echo(json.dumps(said | {"picture_seconds": round(picture_s, 3), "picture_steps": drawn.spec.steps}))
        return
    typer.echo(f"\nThis machine will now use up to {best_rows} rows ({budget:.3g} megapixels) per call of this model.")
    typer.echo(f"Loading took {load_s:.2f} s, one picture of {drawn.spec.steps} steps {picture_s:.2f} s.")
