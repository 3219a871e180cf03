"""`safelight eval compare` and `safelight audit`: measure a model against the one it was made from."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safelight.cli import options

if TYPE_CHECKING:
    from safelight.lifecycle.evaluation.gate import Policy
    from safelight.lifecycle.promotion.report import Report
    from safelight.lifecycle.promotion.setup import CompareOptions

COMPARE = """\
[bold]Examples[/]
  safelight eval compare mini ink
  safelight eval compare brand@production brand@4 --held-out more-of-our-brand
  safelight eval compare mini+ink@1 mini+ink@2 --data icons --seeds 8
  safelight eval compare sd15 sd15+brand --encoder ./clip-vit-large-patch14 --prompts prompts.txt"""
AUDIT = """\
[bold]Examples[/]
  safelight audit ink
  safelight audit brand@3 --held-out more-of-our-brand
  safelight audit my-model --data pictures --held-out others"""

Data = Annotated[
    str | None,
    typer.Option(help="Training pictures of the model.", show_default="from its recipe"),
]
HeldOut = Annotated[
    str | None,
    typer.Option(
        help="Similar pictures that it was not trained on, in addition to those its run held out with --holdout."
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help="Text file, one prompt per line; prompts after a line `neutral:` are unrelated to the training data.",
        show_default="its captions, and eight neutral prompts",
    ),
]
Seeds = Annotated[int, typer.Option(min=1, max=64, help="Pictures per prompt, with seeds 0, 1, ...")]
Steps = Annotated[int | None, typer.Option(min=1, max=1000, help="Sampler steps.", show_default="the model's own")]
Encoder = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a CLIP model (transformers) that judges the pictures; the one in the package knows only "
        "drawings of everyday things.",
        show_default="mini's image encoder",
    ),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", help="TOML with the bounds of each metric.", show_default="`safelight models policy`"),
]
Again = Annotated[bool, typer.Option("--again", help="Measure again instead of using the stored report.")]


def compare(
    before: Annotated[str, typer.Argument(metavar="A", help="A model, a version, or MODEL+LORA.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The model to compare with it.")],
    data: Data = None,
    held_out: HeldOut = None,
    prompts: Prompts = None,
    seeds: Seeds = 4,
    steps: Steps = None,
    encoder: Encoder = None,
    policy_file: PolicyFile = None,
    again: Again = False,
    as_json: options.Json = False,
) -> None:
    """Draw the same prompts with two models and measure the differences; write an HTML report and its JSON.

    Exits with 1 if the second model does not pass the policy.
    """
    from safelight.lifecycle.evaluation.gate import read_policy
    from safelight.lifecycle.promotion.setup import CompareOptions

    options = CompareOptions(data=data, held_out=held_out, prompts=prompts, seeds=seeds, steps=steps, encoder=encoder)
    policy = read_policy(policy_file)
    report, page = measure(before, after, options, policy, again=again)
    print_report(report, page, policy, as_json=as_json)
    if not report.verdict(policy).passed:
        raise typer.Exit(1)


def audit(
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="A registered version, or any other model.")],
    data: Data = None,
    held_out: HeldOut = None,
    seeds: Seeds = 8,
    steps: Steps = None,
    encoder: Encoder = None,
    as_json: options.Json = False,
) -> None:
    """Test whether a model has memorised its training pictures: nearest neighbours and membership inference.

    The report shows every sample that is too near to a training picture beside that picture.
    """
    from safelight.errors import InvalidRequest
    from safelight.lifecycle.evaluation.gate import DEFAULT_POLICY, Policy
    from safelight.lifecycle.promotion.setup import CompareOptions

    bounds = {name: DEFAULT_POLICY.metrics[name] for name in ("copies", "membership_auc")}
    options = CompareOptions(data=data, held_out=held_out, seeds=seeds, steps=steps, encoder=encoder)
    report, page = measure(name, name, options, Policy(metrics=bounds), again=False)
    if "copies" not in report.numbers:
        raise InvalidRequest(report.words[0])
    print_report(report, page, Policy(metrics=bounds), as_json=as_json)


def measure(
    before: str | None, after: str, options: "CompareOptions", policy: "Policy", *, again: bool
) -> "tuple[Report, Path]":
    """The report, measured now or loaded, and the path of its page."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from safelight.lifecycle.promotion.compare import compare
    from safelight.lifecycle.promotion.report import load_report, make_report, pictures_of, write_report
    from safelight.lifecycle.promotion.setup import open_comparison
    from safelight.models.registry.registry import open_registry
    from safelight.settings import Settings
    from safelight.studio import open_studio

    settings = Settings.from_environment()
    folder = settings.home / "reports"
    with open_registry(settings) as registry, open_studio(settings) as studio:
        comparison, encoder = open_comparison(before, after, options, registry, studio)
        if not again and (stored := load_report(folder, comparison.digest())):
            # Write the page anew: the policy may differ from the one of the stored page.
            return stored[0], write_report(folder, *stored, policy)
        drawn = folder / f"{comparison.digest()[:16]}.drawn"
        if again:
            shutil.rmtree(drawn, ignore_errors=True)
        with Progress(console=Console(stderr=True), transient=True) as bar:
            tasks: dict[str, TaskID] = {}

            def on_progress(task: str, done: int, total: int) -> None:
                if task not in tasks:
                    tasks[task] = bar.add_task(task, total=total)
                bar.update(tasks[task], completed=done, total=total)

            result = compare(comparison, encoder, studio, folder=drawn, on_progress=on_progress)
    report = make_report(result)
    page = write_report(folder, report, pictures_of(result), policy)
    shutil.rmtree(drawn, ignore_errors=True)
    return report, page


def print_report(report: "Report", page: Path, policy: "Policy", *, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from safelight.lifecycle.promotion.report import gate

    if as_json:
        typer.echo(json.dumps(report.as_dict(policy) | {"page": str(page)}))
        return
    console = Console()
    table = Table("metric", "measured", "required", "meaning", title=report.title)
    for name in policy.metrics:
        row = gate(name, report.numbers.get(name), policy)
        table.add_row(row["name"], row["value"], row["wanted"], row["meaning"], style=None if row["passed"] else "red")
    console.print(table)
    for line in report.words:
        console.print(line, markup=False)
    verdict = report.verdict(policy)
    console.print("It passes." if verdict.passed else "It does not pass: " + "; ".join(verdict.reasons), markup=False)
    console.print(f"Judged by {report.eyes}.\n{page}", soft_wrap=True, markup=False, highlight=False)
