"""A version on its way into the database, and out of it."""

import getpass
import time
from pathlib import Path

from safelight.models.registry.intake import StoredFiles
from safelight.models.registry.storage import Storage
from safelight.models.registry.tables import VersionRow
from safelight.models.registry.version import Licence, Lineage, Version


def row_of(arrival: StoredFiles, *, name: str, licence: Licence | None, lineage: Lineage, by: str) -> VersionRow:
    """All but its number, which the database gives."""
    contents, source = arrival.contents, arrival.source
    return VersionRow(
        name=name,
        kind=contents.kind,
        digest=arrival.digest,
        base=contents.base,
        prediction=contents.prediction,
        size_bytes=sum((arrival.folder / file).stat().st_size for file in contents.read),
        files=dict(arrival.sums),
        entry=contents.entry,
        place=str(arrival.folder) if arrival.in_place else "",
        source=source.origin[:2048],
        revision=source.revision[:64],
        licence=licence.model_dump(mode="json") if licence else None,
        lineage=lineage.model_dump(mode="json"),
        added=time.time(),
        added_by=by[:128],
        removed=None,
    )


def value_of(row: VersionRow, storage: Storage) -> Version:
    folder = Path(row.place) if row.place else storage.of(row.digest)
    return Version(
        id=row.id,
        name=row.name,
        number=row.number,
        kind=row.kind,  # pyright: ignore[reportArgumentType]  only kinds are written
        digest=row.digest,
        base=row.base,
        prediction=row.prediction,
        size_bytes=row.size_bytes,
        files=row.files,
        folder=folder,
        path=folder / row.entry if row.entry else folder,
        in_place=bool(row.place),
        source=row.source,
        revision=row.revision,
        licence=Licence.model_validate(row.licence) if row.licence else None,
        lineage=Lineage.model_validate(row.lineage),
        added=row.added,
        added_by=row.added_by,
        removed=row.removed,
    )


def whoever() -> str:
    """The user of this process, as histories name it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user may have no name
        return "unknown"
