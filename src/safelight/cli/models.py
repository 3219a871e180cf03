"""`safelight models`: which models there are, what one is, and how they become other files."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from safelight.cli import folders, options, promotion, versions
from safelight.cli.sizes import megabytes

if TYPE_CHECKING:
    from safelight.models.checkpoints.families import Description
    from safelight.models.registry.version import Pointing, Version
    from safelight.settings import Settings

EXAMPLES = """\
[bold]Examples[/]
  safelight models list
  safelight models list --kind lora
  safelight models add ~/Downloads/brand.safetensors --alias production
  safelight models show brand@production
  safelight models show mini
  safelight models show ./stable-diffusion-v1-5 --json
  safelight models show ~/Downloads/checkpoint.safetensors
  safelight models export my-model --single-file my-model.safetensors
  safelight models convert old.ckpt new.safetensors
  safelight models join flux-brand.safetensors ./FLUX.1-dev
"""
INPUT = {
    "words": "a prompt that says what to draw",
    "instructions": "a picture, and a prompt that says what to change",
    "picture": "a picture, of which it draws variations",
}
"""By what a model reads."""
LICENCES = ("LICENSE*", "LICENCE*", "license*", "licence*", "COPYING*")

app = typer.Typer(
    name="models", help="Add models, list and show them, name their versions; convert and export.", epilog=EXAMPLES
)
app.command("add", epilog=versions.ADD)(versions.add)
app.command("alias", epilog=versions.ALIAS)(versions.alias)
app.command("licence", epilog=versions.LICENCE)(versions.licence)
app.command("link", epilog=folders.LINK)(folders.link)
app.command("policy", epilog=promotion.POLICY)(promotion.policy)
app.command("promote", epilog=promotion.PROMOTE)(promotion.promote)
app.command("rollback", epilog=promotion.PROMOTE)(promotion.rollback)
app.command("rm", epilog=versions.RM)(versions.rm)
app.command("verify", epilog=folders.VERIFY)(folders.verify)


@app.callback(invoke_without_command=True)
def models(ctx: typer.Context, as_json: options.Json = False) -> None:
    if ctx.invoked_subcommand is None:
        list_models(as_json=as_json)


@app.command("list", epilog=EXAMPLES)
def list_models(
    kind: Annotated[
        str, typer.Option(help="Kind to list: vae, lora, embedding, controlnet, ...; default: checkpoints.")
    ] = "checkpoint",
    as_json: options.Json = False,
) -> None:
    """List the checkpoints: the embedded one, those under SAFELIGHT_HOME/models, and the versions of the registry."""
    if kind != "checkpoint":
        list_files(kind, as_json=as_json)
        return
    from safelight.errors import SafelightError
    from safelight.models.checkpoints.families import describe
    from safelight.models.registry.registered_models import open_catalogue
    from safelight.settings import Settings

    settings = Settings.from_environment()
    catalogue = open_catalogue(settings)
    found: list[dict[str, Any]] = []
    for name in catalogue.names():
        try:
            found.append(summary(name, describe(catalogue.find(name))))
        except SafelightError as error:
            found.append({"name": name, "error": str(error)})
    if as_json:
        for model in found:
            typer.echo(json.dumps(model))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("name", "family", "prediction", "native size", "sampler", "steps", "on disk"):
        table.add_column(heading)
    for model in found:
        if "error" in model:
            table.add_row(model["name"], Text(model["error"], style="red"))
        else:
            size, defaults = f"{model['width']}x{model['height']}", model["defaults"]
            row = (model["name"], model["family"], model["prediction"], size, defaults["sampler"], defaults["steps"])
            table.add_row(*map(str, row), megabytes(model["size_bytes"]))
    console = Console(highlight=False)
    console.print(table)
    rule = f"\nAny diffusers folder or .safetensors checkpoint in {settings.models} is listed here by its name."
    console.print(Text(rule, style="dim"))


def list_files(kind: str, *, as_json: bool) -> None:
    """List files of another kind: names, base models by their headers, and paths."""

    from safelight.errors import InvalidRequest, SafelightError, nearest
    from safelight.models.registry.describe_files import describe_files
    from safelight.models.registry.registered_models import open_catalogue
    from safelight.models.weights.identify import KINDS, TITLES
    from safelight.settings import Settings

    if kind not in KINDS:
        raise InvalidRequest(f"no kind {kind!r}{nearest(kind, list(KINDS))}; known: {', '.join(KINDS)}")
    catalogue = open_catalogue(Settings.from_environment())
    files = catalogue.files(kind)
    for name, path in files.items():
        about: dict[str, Any] = {"name": name, "path": str(path)}
        try:
            found = describe_files(path, kind)
            about |= {"base": found.base, "size_bytes": found.size_bytes}
            words = (f"for {TITLES.get(found.base, found.base)}", megabytes(found.size_bytes), str(path))
        except SafelightError as error:
            about["error"] = str(error)
            words = (str(error),)
        typer.echo(json.dumps(about) if as_json else "  ".join((name, *words)))
    if not files and not as_json:
        typer.echo(f"There are none. Put files or folders into {catalogue.folder(kind)}.")


@app.command(epilog=EXAMPLES)
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@VERSION]|PATH|HUB_ID",
            help="A model; registered ones may be of any kind, and a hub id must be downloaded.",
        ),
    ],
    as_json: options.Json = False,
) -> None:
    """Show a model: its kind, its defaults, size, digest, licence, its origin, and the history of its aliases."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # looking at a model should not download gigabytes
    from safelight.models.checkpoints.digest import digest_model
    from safelight.models.checkpoints.families import describe
    from safelight.models.registry.registered_models import open_catalogue
    from safelight.settings import Settings

    settings = Settings.from_environment()
    version, turns = registered(name, settings)
    model: dict[str, Any] = {}
    if version is None or (version.kind == "checkpoint" and version.removed is None):
        about = describe(open_catalogue(settings).find(name) if version is None else version.path)
        model = summary(name, about) | {"digest": digest_model(about, cache=settings.cache / "sums.json")}
    if version is not None:
        model |= versions.facts(version) | {"history": [versions.pointing_facts(turn) for turn in turns]}
    if as_json:
        typer.echo(json.dumps(model))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = rows_of(model) | (versions.rows(version) if version else {})
    for key, value in rows.items():
        table.add_row(key.replace("_", " "), Text(str(value)))
    if turns:
        table.add_row("history", Text("\n".join(map(versions.pointing_line, turns))))
    Console(highlight=False).print(table)


@app.command(epilog=EXAMPLES)
def export(
    name: Annotated[str, typer.Argument(metavar="NAME|PATH|HUB_ID")],
    single_file: Annotated[Path, typer.Option("--single-file", metavar="FILE", help="File to write.")],
    dtype: Annotated[Literal["float16", "bfloat16", "float32"], typer.Option(help="Number format.")] = "float16",
) -> None:
    """Write a checkpoint as one file in the original layout, for other programs."""
    import torch

    from safelight.errors import InvalidRequest
    from safelight.models.checkpoints.families import describe
    from safelight.models.networks.export import export_single_file
    from safelight.models.registry.registered_models import open_catalogue
    from safelight.settings import Settings

    if single_file.suffix != ".safetensors" or single_file.exists():
        raise InvalidRequest(f"{single_file} must end with .safetensors, and must not exist yet")
    about = describe(open_catalogue(Settings.from_environment()).find(name))
    export_single_file(about, single_file, dtype=getattr(torch, dtype), title=about.path.stem)
    typer.echo(f"{single_file}  {megabytes(single_file.stat().st_size)}")


@app.command(epilog=EXAMPLES)
def convert(
    given: Annotated[Path, typer.Argument(metavar="FILE", help="Pickle file: .ckpt, .pt, .pth or .bin.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors")],
) -> None:
    """Convert a pickle to safetensors in a sandboxed process; no code in the file is run."""
    from safelight.models.weights.convert import convert_pickle
    from safelight.models.weights.identify import identify

    header = convert_pickle(given, out)
    typer.echo(f"{out}  {megabytes(out.stat().st_size)}  {identify(header) or 'of no kind that is known here'}")


@app.command(epilog=EXAMPLES)
def join(
    given: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors file that contains the denoiser.")],
    base: Annotated[str, typer.Argument(metavar="NAME|FOLDER|HUB_ID", help="Model that supplies the other parts.")],
    name: Annotated[str, typer.Option(help="Name of the new model; default: the file's name.")] = "",
) -> None:
    """Make a model from a file without text encoders and autoencoder, such as most Flux files.

    The result is a diffusers folder under SAFELIGHT_HOME/models. Its network is written there under diffusers' names,
    scaled eight-bit weights are converted to bfloat16; the base's other files are linked where the disk allows it.
    """
    from safelight.errors import InvalidRequest
    from safelight.models.checkpoints.families import describe
    from safelight.models.networks.join import join as join_files
    from safelight.models.registry.registered_models import open_catalogue
    from safelight.settings import Settings

    settings = Settings.from_environment()
    name = name or given.stem
    if name in ("", ".", "..", "mini") or Path(name).name != name:
        raise InvalidRequest(f"--name: {name!r} is not a valid model name")
    out = settings.models / name
    join_files(given, describe(open_catalogue(settings).find(base)), out)
    about = describe(out)
    size = summary(name, about)["size_bytes"]
    typer.echo(f"{name}  {megabytes(size)}  {about.family.name}  {out}")


def registered(name: str, settings: "Settings") -> "tuple[Version | None, list[Pointing]]":
    """The version of that name, where neither the embedded model nor a folder of ours has it; its aliases' turns."""
    from safelight.errors import UnknownVersion
    from safelight.models.registry.registered_models import has_any
    from safelight.models.registry.registry import open_registry
    from safelight.models.registry.version import Reference

    if not Reference.is_valid(name) or not has_any(settings.database):
        return None, []
    with open_registry(settings) as registry:
        try:
            version = registry.resolve(name)
            return version, registry.moves_of(version.name)
        except UnknownVersion:
            if "@" in name and registry.versions(name.partition("@")[0], removed=True):
                raise
            return None, []


def rows_of(model: dict[str, Any]) -> dict[str, Any]:
    """What `summary` says, for people."""
    if "family" not in model:
        return {}
    return {
        "name": model["name"],
        "where": model["path"],
        "family": model["family"],
        "prediction": model["prediction"],
        "native size": f"{model['width']}x{model['height']}",
        "input": INPUT[model["reads"]],
        "inpaints natively": "yes" if model["inpaints_natively"] else "no",
        **{f"default {key}": value for key, value in model["defaults"].items() if key not in ("width", "height")},
        "on disk": megabytes(model["size_bytes"]),
        "licence": model["licence"] or "not recorded",
        "digest": model["digest"],
    }


def summary(name: str, about: "Description") -> dict[str, Any]:
    """What the configuration says; no weights are read."""
    from safelight.models.checkpoints.digest import files_of

    folder = about.path if about.path.is_dir() else None
    licence = next((path for pattern in LICENCES for path in sorted(folder.glob(pattern))), None) if folder else None
    files = folder.rglob("*") if folder else files_of(about)
    return {
        "name": name,
        "path": str(about.path),
        "family": about.family.name,
        "prediction": about.prediction,
        "width": about.defaults.width,
        "height": about.defaults.height,
        "reads": about.reads,
        "inpaints_natively": about.inpaints_natively,
        "defaults": about.defaults.model_dump(mode="json"),
        "size_bytes": sum(path.stat().st_size for path in files if path.is_file()),
        "licence": str(licence) if licence else None,
    }
