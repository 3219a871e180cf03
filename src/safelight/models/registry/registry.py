"""The register: versions that never change, and aliases that move from one to another.

    registry.add("./brand.safetensors", name="brand")                        brand@1
    registry.point("brand", "production", "brand@1", reason="passed")        brand@production -> brand@1
    registry.resolve("brand@production").path                                what loads

A version is a row and a folder named by its digest (`storage.py`). The folder is complete before the row is written, so
a process that is killed leaves nothing that is half a version.
"""

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from safelight.database.connect import Database, open_database
from safelight.errors import InvalidRequest, UnknownVersion
from safelight.models.checkpoints.catalogue import FOLDERS, SUMS, own_files
from safelight.models.checkpoints.digest import remember
from safelight.models.registry import aliases
from safelight.models.registry.describe_files import look_into
from safelight.models.registry.intake import bring_in
from safelight.models.registry.rows import row_of, value_of, whoever
from safelight.models.registry.source import fetched
from safelight.models.registry.storage import Storage, writing
from safelight.models.registry.tables import VersionRow
from safelight.models.registry.version import RESERVED, Licence, Lineage, Pointing, Reference, Version, is_name
from safelight.models.weights.identify import Kind
from safelight.settings import Settings

MAX_BYTES = 100 * 2**30
"""Longest download, if nothing else is said."""


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
        """Make a version of a file, a diffusers folder, a URL or a hub id, and register it under `name`.

        The same content under the same name is the same version, however often it is added. `in_place` leaves the
        files where they are; `sha256` is what a single file must have; `private` allows URLs inside a private network.
        Blocks, for as long as a download takes.

        Raises:
            UnsafeFile, CorruptModel: not safetensors, or damaged.
            InvalidRequest: not what was said, or there is no such source.
            StorageFailed: there is no room for it.
        """
        with self.storage.incoming() as room:
            there = fetched(source, room=room, partials=self.storage.folder, private=private, max_bytes=max_bytes)
            contents = look_into(there.path, kind, keep_name=in_place)
            name = self.require_name(name or there.name, contents.kind)
            arrival = bring_in(there, contents, room, in_place=in_place, sha256=sha256)
            row = row_of(
                arrival, name=name, licence=licence or there.licence, lineage=lineage or Lineage(), by=by or whoever()
            )
            with self.storage.locked(), writing(self.storage.folder):
                if not in_place:
                    self.storage.place(arrival.folder, arrival.digest, arrival.sums)
                version = self.value(self.database.write(lambda session: insert(session, row)))
        remember({version.folder / file: digest for file, digest in version.files.items()}, cache=self.home / SUMS)
        return version

    def require_name(self, name: str, kind: Kind) -> str:
        if not is_name(name) or name in RESERVED:
            why = "is the embedded model" if name in RESERVED else "is no name: letters, digits and . _ - are"
            raise InvalidRequest(f"{name[:120]!r} {why}; --name gives another")
        folder = self.home / FOLDERS[kind]
        if hiding := own_files(folder, kind).get(name):
            raise InvalidRequest(f"{hiding} has the name {name!r} already, and would hide it; --name gives another")
        return name

    def require_free(self, name: str, kind: Kind) -> None:
        """Say now what `add` would say of the name later, when the work is done.

        Raises:
            InvalidRequest: what would be added under that name could not be had by it.
        """
        self.require_name(name, kind)
        self.database.read(lambda session: require_same_kind(session, name, kind))

    def resolve(self, reference: str) -> Version:
        """What `brand`, `brand@3` or `brand@production` stands for now; a plain name is its newest version.

        Raises:
            UnknownVersion: nothing. InvalidRequest: no reference at all.
        """
        asked = Reference.parse(reference)
        return self.database.read(lambda session: self.value(aliases.resolve(session, asked)))

    def versions(self, name: str | None = None, *, removed: bool = False) -> list[Version]:
        """By name and number."""
        query = select(VersionRow).order_by(VersionRow.name, VersionRow.number)
        if name is not None:
            query = query.where(VersionRow.name == name)
        if not removed:
            query = query.where(VersionRow.removed.is_(None))
        return self.database.read(lambda session: [self.value(row) for row in session.scalars(query)])

    def named(self, kind: Kind) -> dict[str, Version]:
        """What each name and each alias stands for now; an alias that follows what is no more is left out."""

        def work(session: Session) -> dict[str, Version]:
            found: dict[str, Version] = {}
            for text in aliases.known(session):
                with suppress(UnknownVersion):
                    row = aliases.resolve(session, Reference.parse(text))
                    if row.kind == kind and row.removed is None:
                        found[text] = self.value(row)
            return found

        return self.database.read(work)

    def by_digest(self, digest: str, kind: Kind) -> Version | None:
        """One that is still here and has these contents."""
        kept = (VersionRow.digest == digest, VersionRow.kind == kind, VersionRow.removed.is_(None))
        query = select(VersionRow).where(*kept).limit(1)
        return self.database.read(lambda session: self.value(row) if (row := session.scalar(query)) else None)

    def set_licence(self, reference: str, licence: Licence) -> Version:
        """What may be done with a version is found out later at times; what it is never changes."""
        asked = Reference.parse(reference)

        def work(session: Session) -> VersionRow:
            row = aliases.resolve(session, asked)
            row.licence = licence.model_dump(mode="json")
            return row

        return self.value(self.database.write(work))

    def remove(self, reference: str, *, force: bool = False, by: str | None = None) -> Version:
        """Drop a version's files; its row stays, for what was made with it or from it.

        Raises:
            InvalidRequest: aliases point to it, and it is not `force`d: then they are taken away.
        """
        asked = Reference.parse(reference)

        def work(session: Session) -> tuple[VersionRow, bool]:
            aliases.one_at_a_time(session)
            row = aliases.resolve(session, asked)
            pointing = [turn for turn in aliases.current(session) if turn.version_id == row.id]
            if pointing and not force:
                named = ", ".join(str(Reference(turn.name, turn.label)) for turn in pointing)
                raise InvalidRequest(
                    f"{row.name}@{row.number} is what {named} points to; point it elsewhere, or say --force"
                )
            for turn in pointing:
                why = f"{row.name}@{row.number} was removed"
                aliases.turn(session, Reference(turn.name, turn.label), None, by=by or whoever(), reason=why)
            row.removed = row.removed or time.time()
            session.flush()
            others = (VersionRow.digest == row.digest, VersionRow.removed.is_(None), VersionRow.place == "")
            return row, session.scalar(select(VersionRow.id).where(*others).limit(1)) is not None

        with self.storage.locked():
            row, shared = self.database.write(work)
            if not shared and not row.place:
                self.storage.drop(row.digest)
        return self.value(row)

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
        """Let `name@alias` stand for a version from now on; `to` is a number, a reference or a version.

        With `follow` it goes along with the alias `to`, wherever that points. An empty `alias` makes the name itself
        stand for something else. Who, when, why and what it was before is kept (`history`), and so is the `gate`: the
        measurement that it was decided by.

        Raises:
            UnknownVersion: there is no such version. InvalidRequest: it would follow itself.
        """
        moved = alias_of(name, alias)
        asked = Reference.parse(
            to.reference if isinstance(to, Version) else f"{name}@{to}" if type(to) is int else str(to)
        )

        def work(session: Session) -> Pointing:
            aliases.one_at_a_time(session)
            if not moved.label and session.scalar(select(VersionRow.id).where(VersionRow.name == moved.name).limit(1)):
                raise InvalidRequest(f"{name} has versions of its own; an alias of it is {name}@LABEL")
            target = asked if follow and asked.number is None else aliases.resolve(session, asked)
            if isinstance(target, VersionRow) and target.removed is not None:
                raise InvalidRequest(f"{target.name}@{target.number} was removed")
            aliases.turn(session, moved, target, by=by or whoever(), reason=reason, gate=gate)
            return aliases.history(session, moved)[0]

        return self.database.write(work)

    def unpoint(self, name: str, alias: str, *, reason: str = "", by: str | None = None) -> Pointing:
        """Take an alias away; its history stays."""
        moved = alias_of(name, alias)

        def work(session: Session) -> Pointing:
            aliases.one_at_a_time(session)
            if aliases.last_turn(session, moved) is None:
                raise InvalidRequest(f"there is no alias {moved}")
            aliases.turn(session, moved, None, by=by or whoever(), reason=reason)
            return aliases.history(session, moved)[0]

        return self.database.write(work)

    def history(self, name: str, alias: str) -> list[Pointing]:
        """Every turn of an alias, the newest first; the one before is where a rollback goes."""
        return self.database.read(lambda session: aliases.history(session, alias_of(name, alias)))

    def turns_of(self, name: str) -> list[Pointing]:
        """Every turn of all aliases that a name ever had, the newest first."""
        return self.database.read(lambda session: aliases.turns_of(session, name))

    def aliases(self) -> dict[str, str]:
        """What each alias points to or follows now."""

        def work(session: Session) -> dict[str, str]:
            turns = aliases.current(session)
            return {str(Reference(row.name, row.label)): aliases.target_of(session, row) or "" for row in turns}

        return self.database.read(work)

    def value(self, row: VersionRow) -> Version:
        return value_of(row, self.storage)


def insert(session: Session, row: VersionRow) -> VersionRow:
    """The row with the next number of its name, or the one that has its contents already."""
    aliases.one_at_a_time(session)
    same = require_same_kind(session, row.name, row.kind)
    if twin := next((other for other in same if other.digest == row.digest and other.removed is None), None):
        return twin
    row.number = 1 + max((other.number for other in same), default=0)
    session.add(row)
    session.flush()
    return row


def require_same_kind(session: Session, name: str, kind: str) -> list[VersionRow]:
    """The versions of that name."""
    same = [*session.scalars(select(VersionRow).where(VersionRow.name == name).order_by(VersionRow.number))]
    if same and same[0].kind != kind:
        raise InvalidRequest(f"{name} is the name of a {same[0].kind}, and this is a {kind}; --name gives another")
    if aliases.last_turn(session, Reference(name)):
        raise InvalidRequest(f"{name} is an alias; --name gives another")
    return same


def alias_of(name: str, label: str) -> Reference:
    alias = Reference.parse(f"{name}@{label}" if label else name)
    if alias.number is not None:
        raise InvalidRequest(f"{alias} is a version, which never moves; an alias is a word, such as {name}@production")
    return alias


@contextmanager
def open_registry(settings: Settings) -> Generator[Registry, None, None]:
    """On the database of the settings, which is made if it is not there."""
    settings.make_home()
    database = open_database(settings.database)
    try:
        yield Registry(database, settings.home)
    finally:
        database.close()
