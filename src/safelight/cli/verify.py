"""`safelight verify`: what pictures say of themselves."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safelight.cli import options

if TYPE_CHECKING:
    from safelight.settings import Settings
    from safelight.trust.examination import Examination, Layer
    from safelight.trust.ledger import Ledger

EPILOG = """\
[bold]Examples[/]
  safelight verify picture.png
  safelight verify *.jpg --json
  safelight verify picture.png --report report.jws

[bold]Exit code[/]
  0  every picture carries a mark, and all marks hold
  1  a picture carries no mark
  2  a file cannot be read
  3  a signature is broken: the picture was changed after it was signed"""


def verify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Pictures: PNG, JPEG, WebP, AVIF or GIF.")],
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Also write what was found, signed, to this file (JWS)."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Read the marks of pictures: signature (C2PA), metadata (IPTC, AIGC), watermark and ledger.

    Nothing is sent anywhere. A signature is trusted if its root is this installation's own, or lies in
    SAFELIGHT_HOME/trust/anchors.
    """
    from safelight.errors import SafelightError
    from safelight.settings import Settings
    from safelight.trust.examination import EXIT_CODES
    from safelight.trust.examiner import Examiner

    settings = Settings.from_environment()
    examiner = Examiner(settings, ledger_of(settings))
    code = 0
    found: list[Examination] = []
    for file in files:
        try:
            one = examiner.examine(file, trusted=True)
        except (SafelightError, OSError) as error:
            typer.echo(f"{file}: {error}", err=True)
            code = max(code, 2)
            continue
        found.append(one)
        code = max(code, EXIT_CODES[one.conclusion])
        typer.echo(json.dumps({"path": str(file), **one.to_json()}) if as_json else worded(file, one))
    if report is not None:
        report.write_text(examiner.signed(found) + "\n")
    raise typer.Exit(code)


def ledger_of(settings: "Settings") -> "Ledger | None":
    """The ledger, if pictures were drawn here."""
    from safelight.models.registry.registered_models import has_row

    if not has_row(settings.database, "SELECT 1 FROM ledger LIMIT 1"):
        return None
    from safelight.trust.ledger import open_ledger

    return open_ledger(settings)


def worded(file: Path, one: "Examination") -> str:
    made = {"yes": "made by a generative model", "partly": "changed by a generative model", "not said": ""}
    said = {"marked": "marked", "unmarked": "no marks found", "broken": "its signature does not hold"}
    first = ", ".join(filter(None, (said[one.conclusion], made[one.generated])))
    return "\n".join([f"{file}: {first}", *(f"  {line}" for layer in one.layers for line in lines_of(layer))])


def made_of(one: dict[str, str]) -> str:
    """A picture with its signature; a model has none."""
    return one["title"] if one["signature"] == "absent" else f"{one['title']}, signature {one['signature']}"


def lines_of(layer: "Layer") -> list[str]:
    title = layer.name.ljust(10)
    if not layer.found:
        return [f"{title} none"]
    lines = [f"{title} {layer.state}"]
    for name, value in layer.says.items():
        if name == "made_of":
            lines += [f"{'':10} made of: {made_of(one)}" for one in value]
        else:
            text = ", ".join(value) if isinstance(value, list) else str(value)
            lines.append(f"{'':10} {name.replace('_', ' ')}: {text}")
    return lines + [f"{'':10} {reason}" for reason in layer.reasons]
