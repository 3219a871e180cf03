"""The model registry: immutable versions, and aliases that move from one to another.

    registry.add("./brand.safetensors", name="brand")                        brand@1
    registry.point("brand", "production", "brand@1", reason="passed")        brand@production -> brand@1
    registry.resolve("brand@production").path                                the file or folder to load

A version is a row and a folder named by its digest (`storage.py`). The folder is complete before the row is written,
so a killed process leaves no incomplete version.
"""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from safelight.database.connect import Database, open_database
from safelight.errors import InvalidRequest, UnknownVersion
from safelight.models.checkpoints.catalogue import FOLDERS, SUMS, own_files
from safelight.models.checkpoints.digest import cache_sums
from safelight.models.registry import aliases
from safelight.models.registry.describe_files import describe_files
from safelight.models.registry.intake import store_files
from safelight.models.registry.rows import current_user, to_row, to_version
from safelight.models.registry.source import fetch_source
from safelight.models.registry.storage import Storage, writing
from safelight.models.registry.tables import VersionRow
from safelight.models.registry.version import RESERVED, Licence, Lineage, Pointing, Reference, Version, is_name
from safelight.models.weights.identify import Kind
from safelight.settings import Settings

MAX_BYTES = 100 * 2**30
"""Default limit of a download."""


@dataclass(frozen=True, slots=True)
class Registry:
    database: Database
    home: Path
    """SAFELIGHT_HOME."""

    @property
    def storage(self) -> Storage:
        return Storage(self.home / "versions")

    # Versions ------------------------------------------------------------------------------------------------------

    def add(
        self,
        source: str | Path,
        *,
        name: str | None = None,
        kind: Kind | None = None,
        licence: Licence | None = None,
        lineage: Lineage | None = None,
        sha256: str | None = None,
        in_place: bool = False,
        private: bool = False,
        max_bytes: int = MAX_BYTES,
        by: str | None = None,
    ) -> Version:
        """Register a file, a diffusers folder, a URL or a hub id as a version of `name`.

        Adding the same content under the same name again returns the existing version. `in_place` leaves the files
        where they are; `sha256` is the expected digest of a single file; `private` allows URLs in private networks.
        Blocks until a download is finished.

        Raises:
            UnsafeFile, CorruptModel: not safetensors, or damaged.
            InvalidRequest: no such source, or its kind or sha256 differs from the given one.
            StorageFailed: not enough disk space.
        """
        with self.storage.incoming() as folder:
            fetched = fetch_source(
                source, folder=folder, partials=self.storage.folder, private=private, max_bytes=max_bytes
            )
            description = describe_files(fetched.path, kind, keep_name=in_place)
            name = self.require_name(name or fetched.name, description.kind)
            stored = store_files(fetched, description, folder, in_place=in_place, sha256=sha256)
            row = to_row(
                stored,
                name=name,
                licence=licence or fetched.licence,
                lineage=lineage or Lineage(),
                by=by or current_user(),
            )
            with self.storage.locked(), writing(self.storage.folder):
                if not in_place:
                    self.storage.place(stored.folder, stored.digest, stored.sums)
                version = self.to_version(self.database.write(lambda session: insert(session, row)))
        cache_sums({version.folder / file: digest for file, digest in version.files.items()}, cache=self.home / SUMS)
        return version

    def require_name(self, name: str, kind: Kind) -> str:
        if not is_name(name) or name in RESERVED:
            why = "is the embedded model" if name in RESERVED else "is not a valid name (letters, digits and . _ -)"
            raise InvalidRequest(f"{name[:120]!r} {why}; choose another with --name")
        folder = self.home / FOLDERS[kind]
        if hidden := own_files(folder, kind).get(name):
            raise InvalidRequest(
                f"{hidden} has the name {name!r} already, and would be used instead; choose another with --name"
            )
        return name

    def require_free(self, name: str, kind: Kind) -> None:
        """Check a name as `add` will, before the work of making the model.

        Raises:
            InvalidRequest: the name cannot be used for a version of this kind.
        """
        self.require_name(name, kind)
        self.database.read(lambda session: require_same_kind(session, name, kind))

    def resolve(self, reference: str) -> Version:
        """Return the version that `brand`, `brand@3` or `brand@production` refers to now; a plain name is its newest.

        Raises:
            UnknownVersion: no such version. InvalidRequest: the text is not a valid reference.
        """
        requested = Reference.parse(reference)
        return self.database.read(lambda session: self.to_version(aliases.resolve(session, requested)))

    def versions(self, name: str | None = None, *, removed: bool = False) -> list[Version]:
        """Return the versions ordered by name and number."""
        query = select(VersionRow).order_by(VersionRow.name, VersionRow.number)
        if name is not None:
            query = query.where(VersionRow.name == name)
        if not removed:
            query = query.where(VersionRow.removed.is_(None))
        return self.database.read(lambda session: [self.to_version(row) for row in session.scalars(query)])

    def named(self, kind: Kind) -> dict[str, Version]:
        """Return the current version of each name and alias; aliases that follow a removed one are left out."""

        def work(session: Session) -> dict[str, Version]:
            found: dict[str, Version] = {}
            for text in aliases.known(session):
                with suppress(UnknownVersion):
                    row = aliases.resolve(session, Reference.parse(text))
                    if row.kind == kind and row.removed is None:
                        found[text] = self.to_version(row)
            return found

        return self.database.read(work)

    def by_digest(self, digest: str, kind: Kind) -> Version | None:
        """Return a version with this digest that is not removed."""
        conditions = (VersionRow.digest == digest, VersionRow.kind == kind, VersionRow.removed.is_(None))
        query = select(VersionRow).where(*conditions).limit(1)
        return self.database.read(lambda session: self.to_version(row) if (row := session.scalar(query)) else None)

    def lineage_of(self, digests: Sequence[str]) -> dict[str, Lineage]:
        """Return the lineage of those weights that are registered, by digest."""
        query = select(VersionRow).where(VersionRow.digest.in_(digests))

        def work(session: Session) -> dict[str, Lineage]:
            return {row.digest: self.to_version(row).lineage for row in session.scalars(query)}

        return self.database.read(work)

    def set_licence(self, reference: str, licence: Licence) -> Version:
        """Set the licence of a version, the only thing about it that can change: it may be found out later."""
        requested = Reference.parse(reference)

        def work(session: Session) -> VersionRow:
            row = aliases.resolve(session, requested)
            row.licence = licence.model_dump(mode="json")
            return row

        return self.to_version(self.database.write(work))

    def remove(self, reference: str, *, force: bool = False, by: str | None = None) -> Version:
        """Delete a version's files; its row stays, because images and other versions refer to it.

        Raises:
            InvalidRequest: aliases point to it. With `force`, these aliases are removed.
        """
        requested = Reference.parse(reference)

        def work(session: Session) -> tuple[VersionRow, bool]:
            aliases.lock_tables(session)
            row = aliases.resolve(session, requested)
            pointing = [move for move in aliases.current(session) if move.version_id == row.id]
            if pointing and not force:
                named = ", ".join(str(Reference(move.name, move.label)) for move in pointing)
                raise InvalidRequest(
                    f"{named} points to {row.name}@{row.number}; point it to another version, or use --force"
                )
            for move in pointing:
                why = f"{row.name}@{row.number} was removed"
                aliases.move(session, Reference(move.name, move.label), None, by=by or current_user(), reason=why)
            row.removed = row.removed or time.time()
            session.flush()
            others = (VersionRow.digest == row.digest, VersionRow.removed.is_(None), VersionRow.place == "")
            return row, session.scalar(select(VersionRow.id).where(*others).limit(1)) is not None

        with self.storage.locked():
            row, shared = self.database.write(work)
            if not shared and not row.place:
                self.storage.drop(row.digest)
        return self.to_version(row)

    # Aliases -------------------------------------------------------------------------------------------------------

    def point(
        self,
        name: str,
        alias: str,
        to: str | int | Version,
        *,
        reason: str = "",
        by: str | None = None,
        follow: bool = False,
        gate: Mapping[str, Any] | None = None,
    ) -> Pointing:
        """Point `name@alias` to a version; `to` is a number, a reference or a version.

        With `follow` it follows the alias `to` when that moves. An empty `alias` makes the name itself an alias. User,
        time, reason and previous target are recorded (`history`), and so is the `gate`: the measurement behind the
        decision.

        Raises:
            UnknownVersion: no such version. InvalidRequest: the alias would follow itself.
        """
        moved_alias = alias_of(name, alias)
        requested = Reference.parse(
            to.reference if isinstance(to, Version) else f"{name}@{to}" if type(to) is int else str(to)
        )

        def work(session: Session) -> Pointing:
            aliases.lock_tables(session)
            if not moved_alias.label and session.scalar(
                select(VersionRow.id).where(VersionRow.name == moved_alias.name).limit(1)
            ):
                raise InvalidRequest(f"{name} has versions of its own; an alias of it is {name}@LABEL")
            target = requested if follow and requested.number is None else aliases.resolve(session, requested)
            if isinstance(target, VersionRow) and target.removed is not None:
                raise InvalidRequest(f"{target.name}@{target.number} was removed")
            aliases.move(session, moved_alias, target, by=by or current_user(), reason=reason, gate=gate)
            return aliases.history(session, moved_alias)[0]

        return self.database.write(work)

    def unpoint(self, name: str, alias: str, *, reason: str = "", by: str | None = None) -> Pointing:
        """Remove an alias; its history stays."""
        moved_alias = alias_of(name, alias)

        def work(session: Session) -> Pointing:
            aliases.lock_tables(session)
            if aliases.last_move(session, moved_alias) is None:
                raise InvalidRequest(f"there is no alias {moved_alias}")
            aliases.move(session, moved_alias, None, by=by or current_user(), reason=reason)
            return aliases.history(session, moved_alias)[0]

        return self.database.write(work)

    def history(self, name: str, alias: str) -> list[Pointing]:
        """Return every move of an alias, the newest first; a rollback goes to the second."""
        return self.database.read(lambda session: aliases.history(session, alias_of(name, alias)))

    def moves_of(self, name: str) -> list[Pointing]:
        """Return every move of all aliases that a name ever had, the newest first."""
        return self.database.read(lambda session: aliases.moves_of(session, name))

    def aliases(self) -> dict[str, str]:
        """Return what each alias points to or follows now."""

        def work(session: Session) -> dict[str, str]:
            moves = aliases.current(session)
            return {str(Reference(row.name, row.label)): aliases.target_of(session, row) or "" for row in moves}

        return self.database.read(work)

    def to_version(self, row: VersionRow) -> Version:
        return to_version(row, self.storage)


def insert(session: Session, row: VersionRow) -> VersionRow:
    """Insert the row with the next number of its name; if a version has the same content, return that one."""
    aliases.lock_tables(session)
    versions = require_same_kind(session, row.name, row.kind)
    if identical := next((other for other in versions if other.digest == row.digest and other.removed is None), None):
        return identical
    row.number = 1 + max((other.number for other in versions), default=0)
    session.add(row)
    session.flush()
    return row


def require_same_kind(session: Session, name: str, kind: str) -> list[VersionRow]:
    """Return the versions of that name; raise InvalidRequest if they are of another kind or the name is an alias."""
    versions = [*session.scalars(select(VersionRow).where(VersionRow.name == name).order_by(VersionRow.number))]
    if versions and versions[0].kind != kind:
        raise InvalidRequest(
            f"{name} is the name of a {versions[0].kind}, but this is a {kind}; choose another with --name"
        )
    if aliases.last_move(session, Reference(name)):
        raise InvalidRequest(f"{name} is an alias; choose another with --name")
    return versions


def alias_of(name: str, label: str) -> Reference:
    alias = Reference.parse(f"{name}@{label}" if label else name)
    if alias.number is not None:
        raise InvalidRequest(f"{alias} is a version; an alias has a word after the @, such as {name}@production")
    return alias


@contextmanager
def open_registry(settings: Settings) -> Generator[Registry, None, None]:
    """Open the registry on the configured database, which is created if it does not exist."""
    settings.make_home()
    database = open_database(settings.database)
    try:
        yield Registry(database, settings.home)
    finally:
        database.close()
