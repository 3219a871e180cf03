"""Resolve names and aliases to versions. Every function runs in the caller's transaction.

An alias points to a version, or follows another alias. Its rows are its history; the last row is its current target.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from safelight.errors import InvalidRequest, UnknownVersion
from safelight.models.registry.tables import PointingRow, VersionRow
from safelight.models.registry.version import Pointing, Reference


def lock_tables(session: Session) -> None:
    """Lock the tables, so that rows that are read stay unchanged until the write. SQLite has one writer anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("LOCK TABLE versions, pointings IN SHARE ROW EXCLUSIVE MODE"))


def resolve(session: Session, reference: Reference) -> VersionRow:
    """Return the version it refers to now; a removed version only by its number.

    Raises:
        UnknownVersion: no such version.
        InvalidRequest: the aliases form a cycle.
    """
    visited = [reference]
    while True:
        if (number := reference.number) is not None:
            found = select(VersionRow).where(VersionRow.name == reference.name, VersionRow.number == number)
        elif last := last_move(session, reference):
            if last.follows:
                reference = Reference.parse(last.follows)
                if reference in visited:
                    raise cycle([*visited, reference])
                visited.append(reference)
                continue
            found = select(VersionRow).where(VersionRow.id == last.version_id)
        elif not reference.label:
            newest = VersionRow.number.desc()
            conditions = (VersionRow.name == reference.name, VersionRow.removed.is_(None))
            found = select(VersionRow).where(*conditions).order_by(newest).limit(1)
        else:
            raise UnknownVersion(str(visited[0]), known(session))
        if (row := session.scalar(found)) is None:
            raise UnknownVersion(str(visited[0]), known(session))
        return row


def last_move(session: Session, alias: Reference) -> PointingRow | None:
    """Return the alias's last row; None if the alias never existed or was removed."""
    conditions = (PointingRow.name == alias.name, PointingRow.label == alias.label)
    row = session.scalar(select(PointingRow).where(*conditions).order_by(PointingRow.id.desc()).limit(1))
    return row if row is not None and (row.version_id is not None or row.follows) else None


def current(session: Session) -> list[PointingRow]:
    """Return the last row of every existing alias."""
    last = select(func.max(PointingRow.id)).group_by(PointingRow.name, PointingRow.label)
    order = (PointingRow.name, PointingRow.label)
    rows = session.scalars(select(PointingRow).where(PointingRow.id.in_(last)).order_by(*order))
    return [row for row in rows if row.version_id is not None or row.follows]


def move(
    session: Session,
    alias: Reference,
    to: VersionRow | Reference | None,
    *,
    by: str,
    reason: str,
    gate: Mapping[str, Any] | None = None,
) -> PointingRow:
    """Point the alias to a version, let it follow another alias, or remove it (None).

    Raises:
        InvalidRequest: the alias would follow itself.
        UnknownVersion: the alias to follow does not exist.
    """
    follows = ""
    if isinstance(to, Reference):
        require_no_circle(session, alias, to)
        resolve(session, to)
        follows = str(to)
    row = PointingRow(
        name=alias.name,
        label=alias.label,
        version_id=to.id if isinstance(to, VersionRow) else None,
        follows=follows,
        at=time.time(),
        by=by[:128],
        reason=reason[:2000],
        gate=dict(gate) if gate is not None else None,
    )
    session.add(row)
    session.flush()
    return row


def require_no_circle(session: Session, alias: Reference, to: Reference) -> None:
    path = [alias, to]
    while path[-1] != alias:
        step = last_move(session, path[-1])
        if step is None or not step.follows:
            return
        path.append(Reference.parse(step.follows))
        if len(path) > 100:
            break
    raise cycle(path)


def cycle(path: Iterable[Reference]) -> InvalidRequest:
    return InvalidRequest(f"aliases would form a cycle: {' -> '.join(map(str, path))}")


def history(session: Session, alias: Reference) -> list[Pointing]:
    """Return every move of an alias, the newest first."""
    conditions = (PointingRow.name == alias.name, PointingRow.label == alias.label)
    rows = session.scalars(select(PointingRow).where(*conditions).order_by(PointingRow.id))
    found: list[Pointing] = []
    previous: str | None = None
    for row in rows:
        to = target_of(session, row)
        pointing = Pointing(
            alias=str(alias), to=to, previous=previous, at=row.at, by=row.by, reason=row.reason, gate=row.gate
        )
        found.append(pointing)
        previous = to
    return found[::-1]


def moves_of(session: Session, name: str) -> list[Pointing]:
    """Return every move of all aliases that a name ever had, the newest first."""
    labels = session.scalars(select(PointingRow.label).where(PointingRow.name == name).distinct())
    found = [each for label in labels for each in history(session, Reference(name, label))]
    return sorted(found, key=lambda each: each.at, reverse=True)


def target_of(session: Session, row: PointingRow) -> str | None:
    if row.version_id is None:
        return row.follows or None
    version = session.get_one(VersionRow, row.version_id)
    return f"{version.name}@{version.number}"


def known(session: Session) -> list[str]:
    """Return all names and aliases, as suggestions for an error message."""
    names = session.scalars(select(VersionRow.name).where(VersionRow.removed.is_(None)).distinct())
    return sorted({*names, *(str(Reference(row.name, row.label)) for row in current(session))})
