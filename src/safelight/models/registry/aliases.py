"""Where names and aliases lead. Every function runs in the caller's transaction.

An alias points to a version, or follows another alias. Its rows are its history; the last one is what it is.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from safelight.errors import InvalidRequest, UnknownVersion
from safelight.models.registry.tables import PointingRow, VersionRow
from safelight.models.registry.version import Pointing, Reference


def one_at_a_time(session: Session) -> None:
    """What is read stays true until it is acted upon. SQLite has one writer in any case."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("LOCK TABLE versions, pointings IN SHARE ROW EXCLUSIVE MODE"))


def resolve(session: Session, reference: Reference) -> VersionRow:
    """The version that it leads to now; one that was removed only by its number.

    Raises:
        UnknownVersion: there is none.
        InvalidRequest: aliases lead in a circle.
    """
    seen = [reference]
    while True:
        if (number := reference.number) is not None:
            found = select(VersionRow).where(VersionRow.name == reference.name, VersionRow.number == number)
        elif turn := last_turn(session, reference):
            if turn.follows:
                reference = Reference.parse(turn.follows)
                if reference in seen:
                    raise circle([*seen, reference])
                seen.append(reference)
                continue
            found = select(VersionRow).where(VersionRow.id == turn.version_id)
        elif not reference.label:
            newest = VersionRow.number.desc()
            kept = (VersionRow.name == reference.name, VersionRow.removed.is_(None))
            found = select(VersionRow).where(*kept).order_by(newest).limit(1)
        else:
            raise UnknownVersion(str(seen[0]), known(session))
        if (row := session.scalar(found)) is None:
            raise UnknownVersion(str(seen[0]), known(session))
        return row


def last_turn(session: Session, alias: Reference) -> PointingRow | None:
    """None: there is no such alias, or no more."""
    turns = (PointingRow.name == alias.name, PointingRow.label == alias.label)
    row = session.scalar(select(PointingRow).where(*turns).order_by(PointingRow.id.desc()).limit(1))
    return row if row is not None and (row.version_id is not None or row.follows) else None


def current(session: Session) -> list[PointingRow]:
    """Every alias there is, by its last turn."""
    last = select(func.max(PointingRow.id)).group_by(PointingRow.name, PointingRow.label)
    order = (PointingRow.name, PointingRow.label)
    rows = session.scalars(select(PointingRow).where(PointingRow.id.in_(last)).order_by(*order))
    return [row for row in rows if row.version_id is not None or row.follows]


def turn(
    session: Session,
    alias: Reference,
    to: VersionRow | Reference | None,
    *,
    by: str,
    reason: str,
    gate: Mapping[str, Any] | None = None,
) -> PointingRow:
    """Add a turn to the alias: to a version, to follow another alias, or to be no more.

    Raises:
        InvalidRequest: it would follow itself.
        UnknownVersion: what it is to follow is not there.
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
        step = last_turn(session, path[-1])
        if step is None or not step.follows:
            return
        path.append(Reference.parse(step.follows))
        if len(path) > 100:
            break
    raise circle(path)


def circle(path: Iterable[Reference]) -> InvalidRequest:
    return InvalidRequest(f"aliases would lead in a circle: {' -> '.join(map(str, path))}")


def history(session: Session, alias: Reference) -> list[Pointing]:
    """The newest turn first."""
    turns = (PointingRow.name == alias.name, PointingRow.label == alias.label)
    rows = session.scalars(select(PointingRow).where(*turns).order_by(PointingRow.id))
    found: list[Pointing] = []
    previous: str | None = None
    for row in rows:
        to = target_of(session, row)
        turned = Pointing(
            alias=str(alias), to=to, previous=previous, at=row.at, by=row.by, reason=row.reason, gate=row.gate
        )
        found.append(turned)
        previous = to
    return found[::-1]


def turns_of(session: Session, name: str) -> list[Pointing]:
    """Of all aliases that a name ever had, the newest turn first."""
    labels = session.scalars(select(PointingRow.label).where(PointingRow.name == name).distinct())
    found = [each for label in labels for each in history(session, Reference(name, label))]
    return sorted(found, key=lambda each: each.at, reverse=True)


def target_of(session: Session, row: PointingRow) -> str | None:
    if row.version_id is None:
        return row.follows or None
    version = session.get_one(VersionRow, row.version_id)
    return f"{version.name}@{version.number}"


def known(session: Session) -> list[str]:
    """What a reference could have meant, for the error that says so."""
    names = session.scalars(select(VersionRow.name).where(VersionRow.removed.is_(None)).distinct())
    return sorted({*names, *(str(Reference(row.name, row.label)) for row in current(session))})
