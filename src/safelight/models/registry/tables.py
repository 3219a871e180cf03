"""What the database holds of models: versions, and every turn of the aliases that point to them."""

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from safelight.database.tables import Base


class VersionRow(Base):
    """Written once. What is removed keeps its row: pictures and later versions still name it."""

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
    """The file in that folder that is the model; empty where the folder is."""
    place: Mapped[str] = mapped_column(String(2048), default="")
    """Where a version lies that was registered in place; empty: in SAFELIGHT_HOME/versions."""
    source: Mapped[str] = mapped_column(String(2048))
    revision: Mapped[str] = mapped_column(String(64), default="")
    """The commit, of one from the Hugging Face hub."""
    licence: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    lineage: Mapped[dict[str, Any]]
    added: Mapped[float]
    added_by: Mapped[str] = mapped_column(String(128))
    removed: Mapped[float | None] = mapped_column(default=None)


class PointingRow(Base):
    """One turn of an alias; where it points now is its last row, so its history cannot disagree with it."""

    __tablename__ = "pointings"
    __table_args__ = (Index("turns", "name", "label", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    label: Mapped[str] = mapped_column(String(64))
    """`production` in `brand@production`; empty: the name as a whole stands for something else."""
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"), default=None)
    follows: Mapped[str] = mapped_column(String(165), default="")
    """Another alias that it goes along with; with neither, the alias was taken away."""
    at: Mapped[float]
    by: Mapped[str] = mapped_column(String(128))
    reason: Mapped[str] = mapped_column(String(2000), default="")
    gate: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    """The report and the policy that decided (`promotion/`); None where nobody measured."""
