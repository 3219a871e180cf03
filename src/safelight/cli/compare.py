"""`safelight eval compare` and `safelight audit`: a model beside the one it was made from, in numbers and pictures."""

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
    typer.Option(help="Pictures that the model learnt from.", show_default="as its recipe says"),
]
HeldOut = Annotated[
    str | None,
    typer.Option(help="Pictures like those that it never saw, beside what its run kept aside with --holdout."),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help="A prompt a line; after a line `neutral:` those that have nothing to do with what was learnt.",
        show_default="from its captions, and eight neutral ones",
    ),
]
Seeds = Annotated[int, typer.Option(min=1, max=64, help="Pictures of each prompt, with seeds 0, 1, ...")]
Steps = Annotated[int | None, typer.Option(min=1, max=1000, help="Of the sampler.", show_default="the model's own")]
Encoder = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a CLIP (transformers) that judges; mini's knows only drawings of everyday things.",
        show_default="mini's image encoder",
    ),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", help="TOML with the bounds of each number.", show_default="`safelight models policy`"),
]
Again = Annotated[bool, typer.Option("--again", help="Measure anew, although the same was measured before.")]


def compare(
    before: Annotated[str, typer.Argument(metavar="A", help="A model, a version, or MODEL+LORA.")],
    after: Annotated[str, typer.Argument(metavar="B", help="What is held against it.")],
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
    """Draw the same prompts with both and measure what changed: an HTML page with all pictures, and JSON beside it.

    Ends with 1 where the second would not pass the policy.
    """
    from safelight.lifecycle.evaluation.gate import read_policy
    from safelight.lifecycle.promotion.setup import CompareOptions

    options = CompareOptions(data=data, held_out=held_out, prompts=prompts, seeds=seeds, steps=steps, encoder=encoder)
    policy = read_policy(policy_file)
    report, page = judged(before, after, options, policy, again=again)
    tell(report, page, policy, as_json=as_json)
    if not report.verdict(policy).passed:
        raise typer.Exit(1)


def audit(
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="A trained version, or a model.")],
    data: Data = None,
    held_out: HeldOut = None,
    seeds: Seeds = 8,
    steps: Steps = None,
    encoder: Encoder = None,
    as_json: options.Json = False,
) -> None:
    """Has it learnt its pictures by heart? The nearest training picture of each sample, and what its losses betray.

    The page shows every sample that is too near to a training picture beside that picture.
    """
    from safelight.errors import InvalidRequest
    from safelight.lifecycle.evaluation.gate import DEFAULT_POLICY, Policy
    from safelight.lifecycle.promotion.setup import CompareOptions

    bounds = {name: DEFAULT_POLICY.metrics[name] for name in ("copies", "membership_auc")}
    options = CompareOptions(data=data, held_out=held_out, seeds=seeds, steps=steps, encoder=encoder)
    report, page = judged(name, name, options, Policy(metrics=bounds), again=False)
    if "copies" not in report.numbers:
        raise InvalidRequest(report.words[0])
    tell(report, page, Policy(metrics=bounds), as_json=as_json)


def judged(
    before: str | None, after: str, options: "CompareOptions", policy: "Policy", *, again: bool
) -> "tuple[Report, Path]":
    """The report, measured now or before, and where its page is."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from safelight.lifecycle.promotion.compare import compare
    from safelight.lifecycle.promotion.report import kept_report, report_of, shown_of, write_report
    from safelight.lifecycle.promotion.setup import ask
    from safelight.models.registry.registry import open_registry
    from safelight.settings import Settings
    from safelight.studio import open_studio

    settings = Settings.from_environment()
    folder = settings.home / "reports"
    with open_registry(settings) as registry, open_studio(settings) as studio:
        asked, eyes = ask(before, after, options, registry, studio)
        if not again and (kept := kept_report(folder, asked.digest())):
            # The page says what this policy says, whatever the one before said.
            return kept[0], write_report(folder, *kept, policy)
        drawn = folder / f"{asked.digest()[:16]}.drawn"
        if again:
            shutil.rmtree(drawn, ignore_errors=True)
        with Progress(console=Console(stderr=True), transient=True) as bar:
            tasks: dict[str, TaskID] = {}

            def heard(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, total=total)
                bar.update(tasks[what], completed=done, total=total)

            findings = compare(asked, eyes, studio, kept=drawn, heard=heard)
    report = report_of(findings)
    page = write_report(folder, report, shown_of(findings), policy)
    shutil.rmtree(drawn, ignore_errors=True)
    return report, page


def tell(report: "Report", page: Path, policy: "Policy", *, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from safelight.lifecycle.promotion.report import gate

    if as_json:
        typer.echo(json.dumps(report.as_dict(policy) | {"page": str(page)}))
        return
    console = Console()
    table = Table("number", "measured", "must be", "what it says", title=report.title)
    for name in policy.metrics:
        row = gate(name, report.numbers.get(name), policy)
        table.add_row(row["name"], row["value"], row["wanted"], row["meaning"], style=None if row["passed"] else "red")
    console.print(table)
    for line in report.words:
        console.print(line, markup=False)
    verdict = report.verdict(policy)
    console.print("It passes." if verdict.passed else "It does not pass: " + "; ".join(verdict.reasons), markup=False)
    console.print(f"Judged by {report.eyes}.\n{page}", soft_wrap=True, markup=False, highlight=False)
