"""Where finished pictures are put: checked before drawing, so that nobody waits for a picture that has no place."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.errors import StorageFailed

if TYPE_CHECKING:
    from safelight.api import Drawn
    from safelight.assets.store import AssetStore

MIN_FREE_BYTES = 2**20


class PictureFolder:
    """Writes finished pictures to a folder under readable names, and prints each path."""

    def __init__(self, folder: Path, *, as_json: bool, quiet: bool, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.as_json = as_json
        self.quiet = quiet
        self.say = say
        self.drawn: list[Drawn] = []
        self.paths: list[Path] = []

    def put(self, drawn: "Drawn", store: "AssetStore") -> None:
        from safelight.assets.picture_name import picture_name

        path = copy_out(store, drawn.asset_id, self.folder, picture_name(drawn.spec.prompt, drawn.seed))
        self.drawn.append(drawn)
        self.paths.append(path)
        self.say(self.line(drawn, path))

    def line(self, drawn: "Drawn", path: Path) -> str:
        if self.quiet and not self.as_json:
            return str(path)
        if not self.as_json:
            return f"{path}  seed {drawn.seed}"
        said = {
            "path": str(path.absolute()),
            "seed": drawn.seed,
            "width": drawn.image.width,
            "height": drawn.image.height,
            "spec_digest": drawn.spec.digest(),
            "model_digest": drawn.spec.model_digest,
            "seconds": round(drawn.seconds, 3),
        }
        return json.dumps(said)


def copy_out(store: "AssetStore", asset_id: str, folder: Path, name: str) -> Path:
    """A stored picture under a name of its own."""
    from safelight.assets.store import Asset

    stored = store.path_of(asset_id)
    asset = Asset(id=asset_id, path=stored, size_bytes=stored.stat().st_size)
    return store.copy_to(asset, folder / (name + stored.suffix))


def require_writable(folders: Iterable[Path]) -> None:
    """Create the folders, and check that they are writable.

    Raises:
        StorageFailed: with the folder and the reason.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                usage = shutil.disk_usage(folder)
        except OSError as error:
            raise StorageFailed(f"cannot write to {folder}: {error.strerror or error}; {remedy(folder)}") from None
        # Some network file systems report nothing at all.
        if usage.total and usage.free < MIN_FREE_BYTES:
            raise StorageFailed(f"cannot write to {folder}: its disk is full; {remedy(folder)}")


def remedy(folder: Path) -> str:
    return "set SAFELIGHT_HOME to another folder" if folder.name == "blobs" else "choose another folder with --out"
