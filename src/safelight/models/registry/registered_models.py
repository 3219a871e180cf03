"""The catalogue of all model files: the folders in SAFELIGHT_HOME, registered versions, and linked folders.

A lookup must cost nothing if there is no registry: drawing an image from the command line without a database imports
no SQLAlchemy.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
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
    from safelight.models.registry.version import Lineage, Version

T = TypeVar("T")


def open_catalogue(settings: Settings, *, listed_only: bool = False) -> Catalogue:
    return Catalogue(
        settings.home, sources=(RegisteredModels(settings), LinkedFolders(settings.home)), listed_only=listed_only
    )


@dataclass(frozen=True, slots=True)
class RegisteredModels:
    """The versions as files. The database is queried each time, so new versions and moved aliases are seen at once."""

    settings: Settings

    def files(self, kind: Kind) -> Mapping[str, Path]:
        """Return the file of each name (its newest version) and of each alias."""

        def read(registry: "Registry") -> dict[str, Path]:
            return {name: version.path for name, version in registry.named(kind).items()}

        return self.query(kind, read) or {}

    def find(self, name: str, kind: Kind) -> Path | None:
        from safelight.models.registry.version import Reference

        def read(registry: "Registry") -> Path | None:
            try:
                version = registry.resolve(name)
            except UnknownVersion:
                return None
            return self.verified_path(version) if version.kind == kind and version.removed is None else None

        return self.query(kind, read) if Reference.is_valid(name) else None

    def pinned(self, digest: str, kind: Kind) -> Path | None:
        def read(registry: "Registry") -> Path | None:
            version = registry.by_digest(digest, kind)
            return self.verified_path(version) if version else None

        return self.query(kind, read)

    def verified_path(self, version: "Version") -> Path:
        """Return the version's path. Files whose size and time are unchanged since hashing are not read again.

        Raises:
            CorruptModel: a file is missing, or was changed since it was added.
        """
        files = {version.folder / name: digest for name, digest in version.files.items()}
        advice = (
            f"`safelight models verify {version.reference}` shows which; add the right files again from their source"
        )
        if not all(path.is_file() for path in files):
            raise CorruptModel(
                f"{version.reference} is registered, but files are missing in {version.folder}: {advice}"
            )
        if sums_of([*files], cache=self.settings.home / SUMS) != [*files.values()]:
            raise CorruptModel(f"{version.reference} was changed since it was added: {advice}")
        return version.path

    def pickles(self, kind: Kind) -> Mapping[str, Path]:
        return {}

    def query(self, kind: Kind, read: "Callable[[Registry], T]") -> T | None:
        if not has_versions(self.settings.database, kind):
            return None
        from safelight.database.connect import Database, connect
        from safelight.models.registry.registry import Registry

        database = Database(connect(self.settings.database, pooled=False))
        return read(Registry(database, self.settings.home))


def registered_lineage(settings: Settings, digests: Sequence[str]) -> "dict[str, Lineage]":
    """The lineage of those weights that are registered, by digest."""
    if not has_any(settings.database):
        return {}
    from safelight.database.connect import Database, connect
    from safelight.models.registry.registry import Registry

    return Registry(Database(connect(settings.database, pooled=False)), settings.home).lineage_of(digests)


def has_versions(url: str, kind: Kind) -> bool:
    """Return whether a version of that kind is registered and not removed."""
    return has_row(url, "SELECT 1 FROM versions WHERE kind = ? AND removed IS NULL LIMIT 1", kind)


def has_any(url: str) -> bool:
    """Return whether anything was ever registered."""
    return has_row(url, "SELECT 1 FROM versions LIMIT 1")


def has_row(url: str, query: str, *values: str) -> bool:
    """Return whether a query finds a row, without SQLAlchemy, whose import takes a hundred times as long.

    True also if that cannot be determined; then the caller must query through SQLAlchemy.
    """
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
        # The database is older than the registry; any other error is reported by the query through SQLAlchemy.
        return "no such table" not in str(error)
