"""`safelight models add|alias|rm|licence`: the versions of the registry, and what they are called."""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safelight.cli import options
from safelight.cli.sizes import megabytes

if TYPE_CHECKING:
    from safelight.models.registry.version import Licence, Pointing, Version

Reference = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="brand, brand@3 or brand@production.")]
Restriction = Annotated[
    list[str] | None,
    typer.Option("--restriction", metavar="TEXT", help="What one must or must not do; may be given again."),
]
Reason = Annotated[str, typer.Option(help="Why, for the history.")]

ADD = """\
[bold]Examples[/]
  safelight models add ~/Downloads/brand.safetensors
  safelight models add ./brand --name brand --licence openrail++ --alias candidate
  safelight models add https://example.org/ink.safetensors --sha256 0123...
  safelight models add stabilityai/stable-diffusion-xl-base-1.0
  safelight models add runs/ink/ink.safetensors --in-place
  safelight generate "a red apple" --model brand@candidate"""
ALIAS = """\
[bold]Examples[/]
  safelight models alias
  safelight models alias brand@production brand@3 --reason "passed the gates"
  safelight models alias brand@production
  safelight models alias house brand@production --follow
  safelight models alias brand@candidate --remove"""
LICENCE = """\
[bold]Examples[/]
  safelight models licence brand@3
  safelight models licence brand@3 openrail++ --restriction "For our own shop only."
  safelight models licence ink "Own work" --url https://example.org/terms"""
RM = """\
[bold]Examples[/]
  safelight models rm brand@2
  safelight models rm brand@2 --force"""


def add(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A safetensors file, a diffusers folder, a URL, org/name\\[@revision] or org/name/FILE on the hub.",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="What it is called.", show_default="as the source")] = None,
    kind: Annotated[
        str | None, typer.Option(help="checkpoint, lora, vae, ...", show_default="what the file's header shows")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="openrail++, apache-2.0, ... or words of your own.", show_default="as the hub says"),
    ] = None,
    restriction: Restriction = None,
    sha256: Annotated[str | None, typer.Option(metavar="HEX", help="What a single file's sha256 must be.")] = None,
    alias: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Let NAME@LABEL point to it: production, candidate, ...")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Leave the files where they are; no copy is made.")
    ] = False,
    private_address: Annotated[
        bool, typer.Option("--private-address", help="The URL may lie inside a private network.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Register a model as a version that never changes: a copy, named by its sha256, with its licence and origin."""
    from typing import cast

    from safelight.errors import InvalidRequest
    from safelight.models.registry.licences import licence_of
    from safelight.models.registry.registry import open_registry
    from safelight.models.weights.identify import Kind
    from safelight.settings import Settings

    if restriction and not licence:
        raise InvalidRequest("--restriction belongs to a licence: say --licence too")
    with open_registry(Settings.from_environment()) as registry:
        version = registry.add(
            source,
            name=name,
            kind=cast("Kind | None", kind),
            licence=licence_of(licence, restriction or ()) if licence else None,
            sha256=sha256,
            in_place=in_place,
            private=private_address,
        )
        if alias:
            registry.point(version.name, alias, version, reason="added")
    if as_json:
        typer.echo(json.dumps(facts(version)))
        return
    typer.echo(line(version))
    if version.licence is None:
        typer.echo(f"It says nothing of a licence; `safelight models licence {version.reference} ID` records one.")


def alias(
    name: Annotated[str | None, typer.Argument(metavar="NAME@LABEL", help="Left out, all are listed.")] = None,
    to: Annotated[str | None, typer.Argument(metavar="NAME[@VERSION]", help="Left out, the history is shown.")] = None,
    reason: Reason = "",
    follow: Annotated[bool, typer.Option("--follow", help="Go along with the alias TO, wherever it points.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take the alias away; its history stays.")] = False,
    as_json: options.Json = False,
) -> None:
    """Let a name such as brand@production point to a version; whoever uses it next gets that one, with no restart."""
    from safelight.models.registry.registry import open_registry
    from safelight.models.registry.version import Reference
    from safelight.settings import Settings

    with open_registry(Settings.from_environment()) as registry:
        if name is None:
            for known, target in registry.aliases().items():
                typer.echo(json.dumps({"alias": known, "to": target}) if as_json else f"{known} -> {target}")
            return
        moved = Reference.parse(name)
        if to is not None or remove:
            if to is not None:
                turns = [registry.point(moved.name, moved.label, to, reason=reason, follow=follow)]
            else:
                turns = [registry.unpoint(moved.name, moved.label, reason=reason)]
        else:
            turns = registry.history(moved.name, moved.label)
    for turn in turns:
        typer.echo(json.dumps(told(turn)) if as_json else told_line(turn))
    if not turns:
        typer.echo(f"There is no alias {name}.")


def rm(
    name: Reference,
    force: Annotated[bool, typer.Option("--force", help="Even if aliases point to it; they are taken away.")] = False,
) -> None:
    """Drop a version's files; what is recorded of it stays, for what was made with it or from it."""
    from safelight.models.registry.registry import open_registry
    from safelight.settings import Settings

    with open_registry(Settings.from_environment()) as registry:
        version = registry.remove(name, force=force)
    kept = " (its files stay where they were)" if version.in_place else ""
    typer.echo(f"{version.reference} is removed{kept}.")


def licence(
    name: Reference,
    licence: Annotated[
        str | None, typer.Argument(metavar="ID", help="openrail++, mit, ... or words of your own.")
    ] = None,
    restriction: Restriction = None,
    url: Annotated[str, typer.Option(help="Where its text is.")] = "",
    as_json: options.Json = False,
) -> None:
    """Show what may be done with a version, or record it."""
    from safelight.models.registry.licences import licence_of
    from safelight.models.registry.registry import open_registry
    from safelight.settings import Settings

    with open_registry(Settings.from_environment()) as registry:
        if licence is None:
            version = registry.resolve(name)
        else:
            version = registry.set_licence(name, licence_of(licence, restriction or (), url))
    if as_json:
        typer.echo(json.dumps({"version": version.reference, "licence": facts(version)["licence"]}))
    elif version.licence is None:
        typer.echo(f"{version.reference}: nothing is said of a licence.")
    else:
        typer.echo("\n".join([f"{version.reference}:", *licence_lines(version.licence)]))


def facts(version: "Version") -> dict[str, Any]:
    """All that is recorded, as JSON."""
    return {
        "version": version.reference,
        "kind": version.kind,
        "base": version.base,
        "prediction": version.prediction,
        "digest": version.digest,
        "size_bytes": version.size_bytes,
        "path": str(version.path),
        "in_place": version.in_place,
        "source": version.source,
        "revision": version.revision,
        "licence": version.licence.model_dump(mode="json") if version.licence else None,
        "lineage": version.lineage.model_dump(mode="json"),
        "added": moment(version.added),
        "added_by": version.added_by,
        "removed": moment(version.removed) if version.removed else None,
    }


def rows(version: "Version") -> dict[str, Any]:
    """All that is recorded, for people; what is not known is left out."""
    from safelight.models.weights.identify import TITLES

    lineage = version.lineage
    found = {
        "version": version.reference,
        "where": version.path,
        "kind": version.kind,
        "for": TITLES.get(version.base, version.base) if version.base else "",
        "on disk": megabytes(version.size_bytes),
        "digest": version.digest,
        "came from": f"{version.source} {version.revision}".strip(),
        "added": f"{moment(version.added)} by {version.added_by}",
        "removed": moment(version.removed) if version.removed else "",
        "licence": "\n".join(licence_lines(version.licence)) if version.licence else "nothing is said",
        "made from": "\n".join(f"{parent.name} {parent.digest[:10]}" for parent in lineage.parents),
        "dataset": lineage.dataset_digest,
        "recipe": json.dumps(dict(lineage.recipe)) if lineage.recipe else "",
        "made by": lineage.code_version,
        "metrics": "\n".join(f"{name}: {value}" for name, value in lineage.metrics.items()),
    }
    return {name: value for name, value in found.items() if value}


def line(version: "Version") -> str:
    from safelight.models.weights.identify import TITLES

    base = f" for {TITLES.get(version.base, version.base)}" if version.base else ""
    return f"{version.reference}  {version.kind}{base}  {megabytes(version.size_bytes)}  {version.digest[:10]}"


def licence_lines(licence: "Licence") -> list[str]:
    said = [licence.title or licence.id, *([licence.url] if licence.url else [])]
    return [*said, *(f"- {restriction}" for restriction in licence.restrictions)]


def told(turn: "Pointing") -> dict[str, Any]:
    return {
        "alias": turn.alias,
        "to": turn.to,
        "previous": turn.previous,
        "at": moment(turn.at),
        "by": turn.by,
        "reason": turn.reason,
        "gate": turn.gate,
    }


def told_line(turn: "Pointing") -> str:
    was = f" (was {turn.previous})" if turn.previous else ""
    why = f": {turn.reason}" if turn.reason else ""
    return f"{turn.alias} -> {turn.to or 'nothing'}{was}  {moment(turn.at)} by {turn.by}{why}"


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
