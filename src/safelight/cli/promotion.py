"""`safelight models promote|rollback|policy`: move an alias such as brand@production between versions."""

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
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The version to promote.")],
    to: To = "production",
    against: Annotated[
        str | None, typer.Option(help="The model to compare it with.", show_default="the model it was made from")
    ] = None,
    data: compare.Data = None,
    held_out: compare.HeldOut = None,
    prompts: compare.Prompts = None,
    seeds: compare.Seeds = 4,
    steps: compare.Steps = None,
    encoder: compare.Encoder = None,
    policy_file: compare.PolicyFile = None,
    override: Annotated[
        str,
        typer.Option(metavar="WHY", help="Promote it even if it does not pass; user, reason and verdict are recorded."),
    ] = "",
) -> None:
    """Compare a version with the model it was made from; if it passes the policy, point NAME@LABEL to it.

    A stored report is used again. The next request for the alias gets the new version, without a restart.
    """
    from safelight.cli.versions import pointing_line
    from safelight.lifecycle.evaluation.gate import read_policy
    from safelight.lifecycle.promotion.promote import promote as move
    from safelight.lifecycle.promotion.setup import CompareOptions
    from safelight.models.registry.registry import open_registry
    from safelight.settings import Settings

    policy = read_policy(policy_file)
    options = CompareOptions(data=data, held_out=held_out, prompts=prompts, seeds=seeds, steps=steps, encoder=encoder)
    with open_registry(Settings.from_environment()) as registry:
        version = registry.resolve(name)
        report, page = compare.measure(against, version.reference, options, policy, again=False)
        compare.print_report(report, page, policy, as_json=False)
        pointing = move(registry, version, to, report, policy, override=override)
    typer.echo(pointing_line(pointing))


def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name before the @: brand for brand@production.")],
    to: To = "production",
    reason: Annotated[str, typer.Option(help="Why, for the history.")] = "",
) -> None:
    """Point NAME@LABEL to its previous version; repeated, to the one before that."""
    from safelight.cli.versions import pointing_line
    from safelight.lifecycle.promotion.promote import roll_back
    from safelight.models.registry.registry import open_registry
    from safelight.settings import Settings

    with open_registry(Settings.from_environment()) as registry:
        typer.echo(pointing_line(roll_back(registry, name, to, why=reason)))


def policy() -> None:
    """Print the default policy as TOML for --policy."""
    from safelight.lifecycle.evaluation.gate import DEFAULT_POLICY
    from safelight.lifecycle.promotion.report import MEANINGS

    for name, bound in DEFAULT_POLICY.metrics.items():
        typer.echo(f"[metrics.{name}]  # {MEANINGS[name]}")
        for end, value in bound.model_dump(exclude_none=True).items():
            typer.echo(f"{end} = {value}")
        typer.echo("")
