"""`safelight eval`: measure a model."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from safelight.cli import compare, options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from safelight.lifecycle.evaluation.similarity import ArtworkSimilarity

app = typer.Typer(name="eval", help="Measure a model.", no_args_is_help=True)
EXAMPLES = """\
[bold]Examples[/]
  safelight eval mini
  safelight eval mini --seeds 1 --limit 20
  safelight eval mini --model mini-run/mini --json scores.json"""


app.command("compare", epilog=compare.COMPARE)(compare.compare)


@app.callback()
def introduce() -> None:
    """Measure a model."""


@app.command(epilog=EXAMPLES)
def mini(
    model: options.Model = "mini",
    seeds: Annotated[int, typer.Option(min=1, help="Pictures per prompt, with seeds 0, 1, ...")] = 4,
    limit: Annotated[int | None, typer.Option(min=1, help="Use this many prompts of each set, spread evenly.")] = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps of the model's own sampler.")] = 20,
    artwork: Annotated[
        Path | None,
        typer.Option(
            help="Folder of real artwork to compare with, mini-run/artwork of `safelight train scratch artwork`."
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the scores to this file.")] = None,
) -> None:
    """Measure prompt adherence of the embedded model: draw fixed prompts, and classify the pictures.

    The classifier was trained on real artwork only. All prompts with four seeds are about 2 600 pictures.
    """
    from safelight.api import draw_all, unwrapped
    from safelight.assets.encode import Encoding
    from safelight.errors import CorruptModel
    from safelight.lifecycle.evaluation.judge import open_judge
    from safelight.lifecycle.evaluation.nearest import NEAREST, score_nearest
    from safelight.lifecycle.evaluation.prompt_adherence import draw_sets, scores_of
    from safelight.lifecycle.evaluation.similarity import measure_similarity, read_artwork
    from safelight.models.vision.similarity import open_similarity
    from safelight.spec import Draft
    from safelight.studio import open_studio

    judge = open_judge()
    real = read_artwork(artwork) if artwork else None
    try:
        embed, encoder = open_similarity().features, "image encoder"
    except CorruptModel:
        embed, encoder = judge.features, "judge"  # mini was exported without the stage image-encoder
    artwork_similarity = None
    console = Console()
    known = "  ".join(f"{name} {share:.1%}" for name, share in judge.accuracy.items())
    console.print(f"Accuracy of the judge on held-out artwork: {known}\n")
    table = Table("measure", "right", "asked", "share", "target")
    rows: list[dict[str, float | str]] = []
    with open_studio() as studio, Progress(console=console, transient=True) as bar:
        task = bar.add_task("drawing", total=None)

        def draw(prompts: "Sequence[str]", numbers: "Sequence[int]") -> "list[Image.Image]":
            drafts = [
                Draft(prompt=prompt, seed=seed, steps=steps, model=model)
                for prompt, seed in zip(prompts, numbers, strict=True)
            ]
            made = unwrapped(draw_all(drafts, studio, encoding=Encoding()))
            return [each.image for each in made]

        def on_progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        for drawn in draw_sets(draw, seeds=seeds, limit=limit, on_progress=on_progress):
            if real and drawn.name == "concepts":
                artwork_similarity = measure_similarity(drawn.pictures, real, embed)
            scores = scores_of(drawn, judge)
            if real and drawn.name == NEAREST.prompts and (nearest := score_nearest(drawn, real)).asked:
                scores.append(nearest)
            for score in scores:
                name, target = score.measure.name, score.measure.target
                table.add_row(name, str(score.right), str(score.asked), f"{score.share:.1%}", f"{target:.0%}")
                rows.append({"name": name, "share": score.share, "asked": score.asked, "target": target})
    console.print(table)
    if artwork_similarity:
        console.print(f"\n{similarity_text(artwork_similarity)}\nFeatures from the {encoder}")
    if json_file:
        written = {"judge": judge.accuracy, "scores": rows} | (
            {"likeness": asdict(artwork_similarity), "features": encoder} if artwork_similarity else {}
        )
        json_file.write_text(json.dumps(written, indent=1) + "\n", "utf-8")


def similarity_text(similarity: "ArtworkSimilarity") -> str:
    return (
        f"Kernel distance to held-out artwork: {similarity.distance:.1f}, "
        f"that of training artwork {similarity.real_distance:.1f}\n"
        "Nearer to a training picture than half of the held-out artwork is: "
        f"{similarity.copies_by_features:.1%} by features, {similarity.copies_by_pixels:.1%} by pixels"
    )
