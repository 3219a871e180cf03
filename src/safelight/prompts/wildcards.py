"""Lists of options in files, by name: the choices for `__colour__` in a prompt.

    colour.txt           __colour__          one option per line; lines that begin with # are comments
    animals/wild.txt     __animals/wild__
    clothes.yaml         __hats/summer__     by the keys inside the file, down to a list

An option may begin with a weight, `3::red`, and may contain variants and other wildcards.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from safelight.errors import InvalidRequest, nearest
from safelight.regular_file import is_regular, read_regular, real_path

MAX_BYTES = 2**20
MAX_KEYS_DEEP = 10


class Wildcards:
    """The files under a folder. Each is read once and cached for the lifetime of this object."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache: dict[str, tuple[str, ...]] = {}

    def options(self, name: str) -> tuple[str, ...]:
        """Return the options of a name; at least one.

        Raises:
            InvalidRequest: no such list, an empty or unreadable list, or a name that points out of the folder.
        """
        if name not in self.cache:
            self.cache[name] = self.load(name)
        return self.cache[name]

    def load(self, name: str) -> tuple[str, ...]:
        if name.startswith("/") or ".." in name.split("/"):
            raise InvalidRequest(f"wildcard {name!r} leads out of the folder {self.folder}")
        path = self.folder / f"{name}.txt"
        options = tuple(lines_of(self.text(path))) if is_regular(path) else self.from_yaml.get(name)
        if options is None:
            raise InvalidRequest(f"no wildcard {name!r} in {self.folder}{nearest(name, self.names())}")
        if not options:
            raise InvalidRequest(f"wildcard {name!r} has no options")
        return options

    def names(self) -> list[str]:
        texts = (path.relative_to(self.folder).with_suffix("").as_posix() for path in self.folder.rglob("*.txt"))
        return sorted({*texts, *self.from_yaml})

    @cached_property
    def from_yaml(self) -> dict[str, tuple[str, ...]]:
        """Return every list in every YAML file, by its keys, with the file's folder as a prefix."""
        lists: dict[str, tuple[str, ...]] = {}
        for path in sorted([*self.folder.rglob("*.yaml"), *self.folder.rglob("*.yml")]):
            folder = path.relative_to(self.folder).parent
            for keys, options in lists_in(parse_yaml(self.text(path), path), path):
                lists[(folder / "/".join(keys)).as_posix()] = options
        return lists

    def text(self, path: Path) -> str:
        try:
            if not real_path(path).is_relative_to(real_path(self.folder)):
                raise InvalidRequest(f"{path} is a link out of the folder {self.folder}")
            if path.stat().st_size > MAX_BYTES:
                raise InvalidRequest(f"{path} is larger than {MAX_BYTES >> 20} MiB")
            return read_regular(path).decode("utf-8", "replace")
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None


def lines_of(text: str) -> Iterator[str]:
    for line in text.removeprefix("\ufeff").splitlines():
        if (option := line.strip()) and not option.startswith("#"):
            yield option


def parse_yaml(text: str, path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidRequest(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from None


def lists_in(value: Any, path: Path, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yield lists of options with their keys. Depth is bounded, because YAML may refer to itself."""
    if len(keys) > MAX_KEYS_DEEP:
        raise InvalidRequest(f"{path}: keys nest deeper than {MAX_KEYS_DEEP}")
    match value:
        case dict():
            mapping: dict[Any, Any] = value
            for key, child in mapping.items():
                yield from lists_in(child, path, (*keys, str(key)))
        case list() if keys:
            options: list[Any] = value
            if wrong := next((option for option in options if not isinstance(option, str | int | float)), None):
                raise InvalidRequest(f"{path}: {'/'.join(keys)} holds {str(wrong)[:40]!r}, which is not text")
            yield keys, tuple(str(option) for option in options)
        case None:
            pass
        case _:
            raise InvalidRequest(f"{path}: {'/'.join(keys) or 'the file'} is not a list of options under a key")
