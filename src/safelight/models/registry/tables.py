"""Database tables of models: versions, and every move of the aliases that point to them."""

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from safelight.database.tables import Base


class VersionRow(Base):
    """Written once. A removed version keeps its row, because images and later versions refer to it."""

    __tablename__ = "versions"
    __table_args__ = (UniqueConstraint("name", "number", name="numbered"), Index("by_digest", "digest"))

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    number: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64))
    """sha256 of the file, or of a folder's files (models/checkpoints/digest.py)."""
    base: Mapped[str] = mapped_column(String(16), default="")
    prediction: Mapped[str] = mapped_column(String(16), default="")
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[dict[str, Any]]
    """sha256 of each file, by its path in the version's folder."""
    entry: Mapped[str] = mapped_column(String(255), default="")
    """The model's file in that folder; empty if the folder is the model."""
    place: Mapped[str] = mapped_column(String(2048), default="")
    """The folder of a version that was registered in place; empty for SAFELIGHT_HOME/versions."""
    source: Mapped[str] = mapped_column(String(2048))
    revision: Mapped[str] = mapped_column(String(64), default="")
    """The commit, for a version from the Hugging Face hub."""
    licence: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    lineage: Mapped[dict[str, Any]]
    added: Mapped[float]
    added_by: Mapped[str] = mapped_column(String(128))
    removed: Mapped[float | None] = mapped_column(default=None)


class PointingRow(Base):
    """One move of an alias. Its current target is its last row, so history and target cannot disagree."""

    __tablename__ = "pointings"
    __table_args__ = (Index("turns", "name", "label", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    label: Mapped[str] = mapped_column(String(64))
    """`production` in `brand@production`; empty if the name itself is the alias."""
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"), default=None)
    follows: Mapped[str] = mapped_column(String(165), default="")
    """Another alias that it follows; if this and `version_id` are empty, the alias was removed."""
    at: Mapped[float]
    by: Mapped[str] = mapped_column(String(128))
    reason: Mapped[str] = mapped_column(String(2000), default="")
    gate: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    """The report and the policy behind the decision (`promotion/`); None if nothing was measured."""
