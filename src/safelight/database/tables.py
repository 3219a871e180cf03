"""The base class of all tables. The tables are defined beside the code that uses them: `serving/jobs/tables.py` and
`models/registry/tables.py`.

Times are seconds since the epoch, in UTC, so that they are the same in SQLite and PostgreSQL.
"""

from typing import Any, ClassVar

from sqlalchemy import JSON
from sqlalchemy.orm import DeclarativeBase


class Base(DeclarativeBase):
    type_annotation_map: ClassVar = {dict[str, Any]: JSON(none_as_null=True)}
