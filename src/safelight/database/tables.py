"""What all tables have in common. Each part keeps its own beside the code that reads them: `serving/jobs/tables.py` and
`models/registry/tables.py`.

Times are seconds since the epoch, in UTC, so that SQLite and PostgreSQL agree on them.
"""

from typing import Any, ClassVar

from sqlalchemy import JSON
from sqlalchemy.orm import DeclarativeBase


class Base(DeclarativeBase):
    type_annotation_map: ClassVar = {dict[str, Any]: JSON(none_as_null=True)}
