"""The catalogue of all model files: our folders, the versions of the registry, and linked folders.

Looking at the registry must cost nothing where there is none: a picture drawn from the command line with no database
imports no SQLAlchemy.
"""

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from safelight.errors import CorruptModel, UnknownVersion
from safelight.models.checkpoints.catalogue import SUMS, Catalogue
from safelight.models.checkpoints.digest import sums_of
from safelight.models.checkpoints.linked import LinkedFolders
from safelight.models.weights.identify import Kind
from safelight.settings import Settings

if TYPE_CHECKING:
    from safelight.models.registry.registry import Registry
    from safelight.models.registry.version import Version

T = TypeVar("T")


def open_catalogue(settings: Settings, *, listed_only: bool = False) -> Catalogue:
    return Catalogue(
        settings.home, elsewhere=(RegisteredModels(settings), LinkedFolders(settings.home)), listed_only=listed_only
    )


@dataclass(frozen=True, slots=True)
class RegisteredModels:
    """The versions as files, asked of the database each time: what is added or pointed elsewhere is known at once."""

    settings: Settings

    def files(self, kind: Kind) -> Mapping[str, Path]:
        """Each name, which is its newest version, and each alias."""

        def work(registry: "Registry") -> dict[str, Path]:
            return {name: version.path for name, version in registry.named(kind).items()}

        return self.ask(kind, work) or {}

    def find(self, name: str, kind: Kind) -> Path | None:
        from safelight.models.registry.version import Reference

        def work(registry: "Registry") -> Path | None:
            try:
                version = registry.resolve(name)
            except UnknownVersion:
                return None
            return self.whole(version) if version.kind == kind and version.removed is None else None

        return self.ask(kind, work) if Reference.says(name) else None

    def pinned(self, digest: str, kind: Kind) -> Path | None:
        def work(registry: "Registry") -> Path | None:
            version = registry.by_digest(digest, kind)
            return self.whole(version) if version else None

        return self.ask(kind, work)

    def whole(self, version: "Version") -> Path:
        """Where it is; files that kept their size and time since they were summed are not read again.

        Raises:
            CorruptModel: a file is missing, or is not what was added.
        """
        files = {version.folder / name: digest for name, digest in version.files.items()}
        why = (
            f"`safelight models verify {version.reference}` says which; the right files are added again by their source"
        )
        if not all(path.is_file() for path in files):
            raise CorruptModel(
                f"{version.reference} is registered, and its files are not all in {version.folder}: {why}"
            )
        if sums_of([*files], cache=self.settings.home / SUMS) != [*files.values()]:
            raise CorruptModel(f"{version.reference} is not what was added: {why}")
        return version.path

    def pickles(self, kind: Kind) -> Mapping[str, Path]:
        return {}

    def ask(self, kind: Kind, work: "Callable[[Registry], T]") -> T | None:
        if not has_versions(self.settings.database, kind):
            return None
        from safelight.database.connect import Database, connect
        from safelight.models.registry.registry import Registry

        database = Database(connect(self.settings.database, pooled=False))
        return work(Registry(database, self.settings.home))


def has_versions(url: str, kind: Kind) -> bool:
    """Whether any of that kind is registered and here."""
    return answers(url, "SELECT 1 FROM versions WHERE kind = ? AND removed IS NULL LIMIT 1", kind)


def has_any(url: str) -> bool:
    """Whether anything was ever registered."""
    return answers(url, "SELECT 1 FROM versions LIMIT 1")


def answers(url: str, query: str, *values: str) -> bool:
    """Whether a query finds a row; asked without SQLAlchemy, whose import takes a hundred times as long. True where
    that cannot be told, and the real reader must look."""
    scheme, _, path = url.partition(":///")
    if scheme != "sqlite":
        return True
    path = path.partition("?")[0]
    if not Path(path).is_file():
        return False
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as connection:
            return connection.execute(query, values).fetchone() is not None
    except sqlite3.OperationalError as error:
        # Made before there was a registry; any other trouble is for the real reader to say.
        return "no such table" not in str(error)
