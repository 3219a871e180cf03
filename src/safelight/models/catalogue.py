"""Which checkpoints there are, and where a name leads.

mini              the embedded model
my-model          a folder of that name under SAFELIGHT_HOME/models
./some/folder     a diffusers folder
org/name@revision the Hugging Face hub
"""

from dataclasses import dataclass
from pathlib import Path

from safelight.errors import UnknownModel
from safelight.models.hub import HUB_ID, fetch

MINI = Path(__file__).parent / "mini"


@dataclass(frozen=True, slots=True)
class Catalogue:
    folder: Path
    """Where named models are kept, one folder each."""

    def names(self) -> list[str]:
        own = sorted(path.parent.name for path in self.folder.glob("*/model_index.json"))
        return ["mini", *own]

    def find(self, name: str, *, half: bool = False) -> Path:
        """The folder a name stands for; asks the hub only when nothing here has that name."""
        if name == "mini":
            return MINI
        if name in self.names():
            return self.folder / name
        try:
            is_folder = Path(name).is_dir()
        except OSError:  # longer than a path can be
            raise UnknownModel(f"{name[:80]}...", self.names()) from None
        if is_folder and (Path(name) / "model_index.json").is_file():
            return Path(name).resolve()
        if is_folder:
            raise UnknownModel(f"{name} (a folder without model_index.json)", self.names())
        if HUB_ID.match(name):
            return fetch(name, half=half)
        raise UnknownModel(name, self.names())
