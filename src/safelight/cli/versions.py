"""`safelight models add|alias|rm|licence`: the registry's versions and their aliases."""

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
    typer.Option("--restriction", metavar="TEXT", help="A condition of use; may be given several times."),
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
    name: Annotated[str | None, typer.Option(help="Name in the registry.", show_default="as the source")] = None,
    kind: Annotated[
        str | None, typer.Option(help="checkpoint, lora, vae, ...", show_default="from the file's header")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="openrail++, apache-2.0, ... or free text.", show_default="from the hub"),
    ] = None,
    restriction: Restriction = None,
    sha256: Annotated[str | None, typer.Option(metavar="HEX", help="Expected sha256 of a single file.")] = None,
    alias: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Point NAME@LABEL to it: production, candidate, ...")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Register the files where they are, without a copy.")
    ] = False,
    private_address: Annotated[
        bool, typer.Option("--private-address", help="Allow a URL inside a private network.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Register a model as an immutable version: a copy named by its sha256, with its licence and origin."""
    from typing import cast

    from safelight.errors import InvalidRequest
    from safelight.models.registry.licences import licence_of
    from safelight.models.registry.registry import open_registry
    from safelight.models.weights.identify import Kind
    from safelight.settings import Settings

    if restriction and not licence:
        raise InvalidRequest("--restriction needs --licence")
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
        typer.echo(f"No licence is recorded; add one with `safelight models licence {version.reference} ID`.")


def alias(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME@LABEL", help="Alias, such as brand@production; without it, list all aliases."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Argument(metavar="NAME[@VERSION]", help="Version to point it to; without it, show the history."),
    ] = None,
    reason: Reason = "",
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="If TO is an alias, follow it whenever it moves; without this, point to its version of now.",
        ),
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias; its history stays.")] = False,
    as_json: options.Json = False,
) -> None:
    """Point a name such as brand@production to a version; the next request gets it, without a restart."""
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
                pointings = [registry.point(moved.name, moved.label, to, reason=reason, follow=follow)]
            else:
                pointings = [registry.unpoint(moved.name, moved.label, reason=reason)]
        else:
            pointings = registry.history(moved.name, moved.label)
    for pointing in pointings:
        typer.echo(json.dumps(pointing_facts(pointing)) if as_json else pointing_line(pointing))
    if not pointings:
        typer.echo(f"There is no alias {name}.")


def rm(
    name: Reference,
    force: Annotated[bool, typer.Option("--force", help="Remove also the aliases that point to it.")] = False,
) -> None:
    """Delete a version's files; its record stays, because pictures and other versions refer to it."""
    from safelight.models.registry.registry import open_registry
    from safelight.settings import Settings

    with open_registry(Settings.from_environment()) as registry:
        version = registry.remove(name, force=force)
    note = " (its files stay where they were)" if version.in_place else ""
    typer.echo(f"{version.reference} is removed{note}.")


def licence(
    name: Reference,
    licence: Annotated[str | None, typer.Argument(metavar="ID", help="openrail++, mit, ... or free text.")] = None,
    restriction: Restriction = None,
    url: Annotated[str, typer.Option(help="Address of its text.")] = "",
    as_json: options.Json = False,
) -> None:
    """Show or record a version's licence."""
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
        typer.echo(f"{version.reference}: no licence is recorded.")
    else:
        typer.echo("\n".join([f"{version.reference}:", *licence_lines(version.licence)]))


def facts(version: "Version") -> dict[str, Any]:
    """The version's whole record, for JSON."""
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
    """The version's record for people, without empty fields."""
    from safelight.models.weights.identify import TITLES

    lineage = version.lineage
    fields = {
        "version": version.reference,
        "where": version.path,
        "kind": version.kind,
        "for": TITLES.get(version.base, version.base) if version.base else "",
        "on disk": megabytes(version.size_bytes),
        "digest": version.digest,
        "came from": f"{version.source} {version.revision}".strip(),
        "added": f"{moment(version.added)} by {version.added_by}",
        "removed": moment(version.removed) if version.removed else "",
        "licence": "\n".join(licence_lines(version.licence)) if version.licence else "not recorded",
        "made from": "\n".join(f"{parent.name} {parent.digest[:10]}" for parent in lineage.parents),
        "dataset": lineage.dataset_digest,
        "recipe": json.dumps(dict(lineage.recipe)) if lineage.recipe else "",
        "made by": lineage.code_version,
        "metrics": "\n".join(f"{name}: {value}" for name, value in lineage.metrics.items()),
    }
    return {name: value for name, value in fields.items() if value}


def line(version: "Version") -> str:
    from safelight.models.weights.identify import TITLES

    base = f" for {TITLES.get(version.base, version.base)}" if version.base else ""
    return f"{version.reference}  {version.kind}{base}  {megabytes(version.size_bytes)}  {version.digest[:10]}"


def licence_lines(licence: "Licence") -> list[str]:
    title = [licence.title or licence.id, *([licence.url] if licence.url else [])]
    return [*title, *(f"- {restriction}" for restriction in licence.restrictions)]


def pointing_facts(pointing: "Pointing") -> dict[str, Any]:
    """An entry of an alias's history, for JSON."""
    return {
        "alias": pointing.alias,
        "to": pointing.to,
        "previous": pointing.previous,
        "at": moment(pointing.at),
        "by": pointing.by,
        "reason": pointing.reason,
        "gate": pointing.gate,
    }


def pointing_line(pointing: "Pointing") -> str:
    """An entry of an alias's history, on one line."""
    previous = f" (was {pointing.previous})" if pointing.previous else ""
    reason = f": {pointing.reason}" if pointing.reason else ""
    target = pointing.to or "nothing"
    return f"{pointing.alias} -> {target}{previous}  {moment(pointing.at)} by {pointing.by}{reason}"


def moment(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
