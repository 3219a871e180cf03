"""Which checkpoints there are, and where a name leads.

mini              the embedded model
my-model          a folder or a .safetensors file of that name under SAFELIGHT_HOME/models
./some/path       a diffusers folder, or a single-file checkpoint
org/name@revision the Hugging Face hub
"""

from dataclasses import dataclass
from pathlib import Path

from safelight.errors import UnknownModel, UnsafeFile
from safelight.models.hub import HUB_ID, fetch
from safelight.models.safetensors_file import PICKLE_SUFFIXES, WHY_NOT, conversion_of

MINI = Path(__file__).parent / "mini"
SINGLE = ".safetensors"


@dataclass(frozen=True, slots=True)
class Catalogue:
    folder: Path
    """Where named models are kept: a folder or a file each; files may also be in its folder `checkpoints`."""
    listed_only: bool = False
    """Find what `names` lists, and neither paths nor what would have to be downloaded."""

    def names(self) -> list[str]:
        return ["mini", *self.own()]

    def own(self) -> dict[str, Path]:
        """By name; of a folder and a file of one name, the folder."""
        files = [path for place in ("*", "checkpoints/*") for path in self.folder.glob(f"{place}{SINGLE}")]
        folders = [index.parent for index in self.folder.glob("*/model_index.json")]
        named = {path.stem: path for path in files} | {folder.name: folder for folder in folders}
        return dict(sorted(named.items()))

    def find(self, name: str, *, half: bool = False) -> Path:
        """The folder or file a name stands for; asks the hub only when nothing here has that name.

        Raises:
            UnknownModel: nothing has that name.
            UnsafeFile: it is a file in a format that can carry code.
        """
        if name == "mini":
            return MINI
        own = self.own()
        if found := own.get(name) or own.get(name.removesuffix(SINGLE)):
            return found
        if self.listed_only:
            raise UnknownModel(name[:80], self.names())
        if found := self.at(Path(name)):
            return found
        if HUB_ID.match(name):
            return fetch(name, half=half)
        raise UnknownModel(name, self.names())

    def at(self, path: Path) -> Path | None:
        """What is at that place on this machine; other kinds of files are none of our business, and not looked at."""
        try:
            if path.suffix in (SINGLE, *PICKLE_SUFFIXES) and path.is_file():
                if path.suffix != SINGLE:
                    raise UnsafeFile(f"{path} is a pickle, {WHY_NOT}: {conversion_of(path)} makes a checkpoint of it")
                return path.resolve()
            is_folder = path.is_dir()
        except OSError:  # longer than a path can be
            raise UnknownModel(f"{str(path)[:80]}...", self.names()) from None
        if is_folder and (path / "model_index.json").is_file():
            return path.resolve()
        if is_folder and str(path) not in ("", "."):
            raise UnknownModel(f"{path} (a folder without model_index.json)", self.names())
        return None
