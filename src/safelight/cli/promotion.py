"""`safelight models promote|rollback|policy`: which version an alias such as brand@production stands for, and why."""

from typing import Annotated

import typer

from safelight.cli import compare

PROMOTE = """\
[bold]Examples[/]
  safelight models promote brand@4 --to production
  safelight models promote brand@4 --to production --held-out more-of-our-brand --policy strict.toml
  safelight models promote brand@4 --to production --override "agreed with the brand team, ticket 512"
  safelight models alias brand@production        (its history)
  safelight models rollback brand"""
POLICY = """\
[bold]Examples[/]
  safelight models policy > policy.toml
  safelight models promote brand@4 --to production --policy policy.toml"""
To = Annotated[str, typer.Option("--to", metavar="LABEL", help="The alias that moves: NAME@LABEL.")]


def promote(
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The version that is to be used.")],
    to: To = "production",
    against: Annotated[
        str | None, typer.Option(help="What it is held against.", show_default="what it was made from")
    ] = None,
    data: compare.Data = None,
    held_out: compare.HeldOut = None,
    prompts: compare.Prompts = None,
    seeds: compare.Seeds = 4,
    steps: compare.Steps = None,
    encoder: compare.Encoder = None,
    policy_file: compare.PolicyFile = None,
    override: Annotated[
        str, typer.Option(metavar="WHY", help="Move it although it does not pass; who, why and against what is kept.")
    ] = "",
) -> None:
    """Hold a version against what it was made from; if it passes the policy, let NAME@LABEL point to it.

    What was measured before is not measured again. Whoever uses the alias next gets the version, with no restart.
    """
    from safelight.cli.versions import told_line
    from safelight.lifecycle.evaluation.gate import read_policy
    from safelight.lifecycle.promotion.promote import promote as move
    from safelight.lifecycle.promotion.setup import CompareOptions
    from safelight.models.registry.registry import open_registry
    from safelight.settings import Settings

    policy = read_policy(policy_file)
    options = CompareOptions(data=data, held_out=held_out, prompts=prompts, seeds=seeds, steps=steps, encoder=encoder)
    with open_registry(Settings.from_environment()) as registry:
        version = registry.resolve(name)
        report, page = compare.judged(against, version.reference, options, policy, again=False)
        compare.tell(report, page, policy, as_json=False)
        turn = move(registry, version, to, report, policy, override=override)
    typer.echo(told_line(turn))


def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the versions: brand, of brand@production.")],
    to: To = "production",
    reason: Annotated[str, typer.Option(help="Why, for the history.")] = "",
) -> None:
    """Let NAME@LABEL point to the version that it pointed to before; again, to the one before that."""
    from safelight.cli.versions import told_line
    from safelight.lifecycle.promotion.promote import roll_back
    from safelight.models.registry.registry import open_registry
    from safelight.settings import Settings

    with open_registry(Settings.from_environment()) as registry:
        typer.echo(told_line(roll_back(registry, name, to, why=reason)))


def policy() -> None:
    """Print the policy that counts where none is named, as the TOML that --policy takes."""
    from safelight.lifecycle.evaluation.gate import DEFAULT_POLICY
    from safelight.lifecycle.promotion.report import MEANINGS

    for name, bound in DEFAULT_POLICY.metrics.items():
        typer.echo(f"[metrics.{name}]  # {MEANINGS[name]}")
        for end, value in bound.model_dump(exclude_none=True).items():
            typer.echo(f"{end} = {value}")
        typer.echo("")
