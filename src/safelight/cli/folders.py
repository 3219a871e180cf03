"""`safelight models link|verify`: model folders of other programs, and whether versions are still what they were."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safelight.cli import options

if TYPE_CHECKING:
    from safelight.models.checkpoints.linked import Tree

LINK = """\
[bold]Examples[/]
  safelight models link ~/stable-diffusion-webui
  safelight models link ~/ComfyUI/models
  safelight models link
  safelight models link ~/ComfyUI/models --remove
  safelight models list --kind lora"""
VERIFY = """\
[bold]Examples[/]
  safelight models verify
  safelight models verify brand@3 ink
  safelight models verify --clean"""


def link(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR", help="Folder of AUTOMATIC1111, ComfyUI or InvokeAI; without it, list the linked folders."
        ),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Unlink the folder; its files stay.")] = False,
    as_json: options.Json = False,
) -> None:
    """Use another program's model folders in place: nothing is copied, and new files there are found at once."""
    from safelight.errors import InvalidRequest
    from safelight.models.checkpoints.linked import link, read_links, scan_folder, unlink
    from safelight.settings import Settings

    home = Settings.from_environment().home
    if folder is None and remove:
        raise InvalidRequest("--remove needs a folder; `safelight models link` lists the linked ones")
    if folder is None:
        for known in read_links(home):
            report(scan_folder(known), as_json=as_json)
    elif remove:
        unlink(home, folder)
        typer.echo(f"{folder} is forgotten.")
    else:
        report(link(home, folder), as_json=as_json)


def report(tree: "Tree", *, as_json: bool) -> None:
    """The models of a folder by kind, and the files that are not used, with reasons."""
    if as_json:
        files = {kind: {name: str(path) for name, path in named.items()} for kind, named in tree.files.items()}
        refused = {str(path): why for path, why in tree.refused.items()}
        typer.echo(json.dumps({"folder": str(tree.root), "files": files, "refused": refused}))
        return
    counts = [f"{kind} {len(named)}" for kind, named in tree.files.items() if named]
    missing = "" if tree.root.is_dir() else " (not there now)"
    typer.echo(f"{tree.root}{missing}: {', '.join(counts) or 'nothing that can be used'}")
    for path, why in tree.refused.items():
        typer.echo(f"  not used: {path} {why}")


def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME[@VERSION]]...", help="Versions to verify; default: all.")
    ] = None,
    clean: Annotated[
        bool,
        typer.Option("--clean", help="Remove files of registrations that were interrupted."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Hash the files of registered versions again, and list those that changed or are missing."""
    from safelight.errors import CorruptModel
    from safelight.models.registry import verify as verifying
    from safelight.models.registry.registry import open_registry
    from safelight.settings import Settings

    broken = 0
    with open_registry(Settings.from_environment()) as registry:
        for checked in verifying.verify(registry, names or ()):
            broken += bool(checked.problems)
            if as_json:
                typer.echo(json.dumps({"version": checked.version.reference, "faults": dict(checked.problems)}))
            elif checked.problems:
                for name, fault in checked.problems.items():
                    typer.echo(f"{checked.version.reference}  {fault}: {checked.version.folder / name}")
            else:
                typer.echo(f"{checked.version.reference}  unchanged")
        left = verifying.clean(registry) if clean else verifying.leftovers(registry)
    if left and not as_json:
        done = "removed" if clean else "`safelight models verify --clean` removes them"
        typer.echo(f"{len(left)} copies are left from interrupted registrations: {done}")
    if broken:
        raise CorruptModel(
            f"{broken} versions have changed or missing files; add the right files again with `safelight models add`"
        )
