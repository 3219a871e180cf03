"""Convert stored files to a database row, and a row to a `Version`."""

import getpass
import time
from pathlib import Path

from safelight.models.registry.intake import StoredFiles
from safelight.models.registry.storage import Storage
from safelight.models.registry.tables import VersionRow
from safelight.models.registry.version import Licence, Lineage, Version


def to_row(stored: StoredFiles, *, name: str, licence: Licence | None, lineage: Lineage, by: str) -> VersionRow:
    """Make the row without its number, which `insert` sets."""
    description, source = stored.description, stored.source
    return VersionRow(
        name=name,
        kind=description.kind,
        digest=stored.digest,
        base=description.base,
        prediction=description.prediction,
        size_bytes=sum((stored.folder / file).stat().st_size for file in description.files),
        files=dict(stored.sums),
        entry=description.entry,
        place=str(stored.folder) if stored.in_place else "",
        source=source.origin[:2048],
        revision=source.revision[:64],
        licence=licence.model_dump(mode="json") if licence else None,
        lineage=lineage.model_dump(mode="json"),
        added=time.time(),
        added_by=by[:128],
        removed=None,
    )


def to_version(row: VersionRow, storage: Storage) -> Version:
    folder = Path(row.place) if row.place else storage.path_of(row.digest)
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


def current_user() -> str:
    """Return the name of the user who runs this process, for histories."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user may have no name
        return "unknown"
