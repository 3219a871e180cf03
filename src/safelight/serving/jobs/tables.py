"""What the database holds of jobs: what happened to them, who draws them, and the keys of who may ask for them."""

from typing import Any

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from safelight.database.tables import Base

STATES = ("queued", "running", "done", "failed", "cancelled", "expired")
ENDED = ("done", "failed", "cancelled", "expired")
TRAINING = "training"
"""The task of a job that trains, in a process of its own."""


class JobRow(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("tenant", "idempotency_key", "place", name="once"),
        Index("in_line", "state", "priority", "not_before"),
        Index("by_tenant", "tenant", "created"),
        Index("together", "request"),
        Index("made", "asset_id"),
        Index("to_be_told", "webhook_state", "webhook_due"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    """Hex digits that sort by the time of acceptance."""
    request: Mapped[str] = mapped_column(String(32))
    """What the jobs of one request share: the id of its first job."""
    place: Mapped[int] = mapped_column(default=0)
    """Its place among the jobs of its request."""
    tenant: Mapped[str] = mapped_column(String(64), default="")
    """The id of the key that asked; empty where none is needed."""
    idempotency_key: Mapped[str | None] = mapped_column(String(255), default=None)
    request_digest: Mapped[str] = mapped_column(String(64), default="")
    """sha256 of what the request said, to tell a retry from another request under the same idempotency key."""
    spec: Mapped[dict[str, Any]]
    encoding: Mapped[dict[str, Any]]
    priority: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(String(16), default="queued")
    created: Mapped[float]
    not_before: Mapped[float] = mapped_column(default=0.0)
    """Its place in line: when it was accepted, or, where it has to wait before it is tried again, that time."""
    expires: Mapped[float | None] = mapped_column(default=None)
    """A job that has not begun by then never does."""
    started: Mapped[float | None] = mapped_column(default=None)
    finished: Mapped[float | None] = mapped_column(default=None)
    worker: Mapped[str] = mapped_column(String(128), default="")
    """The token of the process that has it."""
    attempts: Mapped[int] = mapped_column(default=0)
    """How often it was taken from the line: with the id, the fence that every write of an attempt has to pass."""
    drawing: Mapped[bool] = mapped_column(default=False)
    """This attempt has begun to draw; what its process dies of may be this job."""
    suspect: Mapped[bool] = mapped_column(default=False)
    """A process died while it was drawn, and others beside it: it is drawn alone from now on."""
    crashes: Mapped[int] = mapped_column(default=0)
    """How many processes died while they drew it alone."""
    cancel_asked: Mapped[bool] = mapped_column(default=False)
    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int] = mapped_column(default=0)
    asset_id: Mapped[str | None] = mapped_column(String(64), default=None)
    error: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    """`status`, `code` and `message` of what failed."""
    seconds: Mapped[float] = mapped_column(default=0.0)
    compute_s: Mapped[float] = mapped_column(default=0.0)
    """Network seconds of all its attempts, those that came to nothing included."""
    webhook_url: Mapped[str | None] = mapped_column(String(2048), default=None)
    webhook_state: Mapped[str] = mapped_column(String(16), default="")
    """Empty, or `due`, `sent`, `given up`."""
    webhook_attempts: Mapped[int] = mapped_column(default=0)
    webhook_due: Mapped[float] = mapped_column(default=0.0)


class EventRow(Base):
    """One fact about a job, numbered from 1, so that a listener can go on where it was cut off."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    at: Mapped[float]
    data: Mapped[dict[str, Any]]


class WorkerRow(Base):
    """A process that takes jobs. Its token tells it from every other, living or dead; host and pid tell operators."""

    __tablename__ = "workers"

    token: Mapped[str] = mapped_column(String(32), primary_key=True)
    host: Mapped[str] = mapped_column(String(64))
    pid: Mapped[int]
    began: Mapped[float]
    beat: Mapped[float]
    """When it last said that it is alive; it says so as long as it has jobs in hand."""


class UsageRow(Base):
    """What one job counts for among what its caller may have; it stays when the job is gone."""

    __tablename__ = "usage"
    __table_args__ = (Index("used_by", "tenant", "asked"),)

    job_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    asked: Mapped[float]
    pictures: Mapped[int]
    """1 while it may still become a picture, and where one was drawn, even in part."""
    compute_s: Mapped[float]


class HolderRow(Base):
    """Whose jobs made, or began with, a stored picture, or who sent it: they may see it."""

    __tablename__ = "holders"

    asset_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)


class KeyRow(Base):
    """Who may ask, for what, and how much; the key itself is not kept, only its sha256."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    """One key in use at a time has it."""
    secret_sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[str] = mapped_column(String(255), default="draw")
    """Words between spaces: `draw`, `admin`."""
    created: Mapped[float]
    revoked: Mapped[float | None] = mapped_column(default=None)
    per_minute: Mapped[int | None] = mapped_column(default=None)
    """Most pictures in any sixty seconds."""
    pictures_per_day: Mapped[int | None] = mapped_column(default=None)
    compute_s_per_day: Mapped[float | None] = mapped_column(default=None)
    priority: Mapped[int] = mapped_column(default=0)
    """The highest priority its jobs may have."""
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What an AUTOMATIC1111 client set through /sdapi/v1/options: its own, nobody else's."""


class SecretRow(Base):
    """The server's own secrets by purpose, made once and shared by all processes on this database."""

    __tablename__ = "secrets"

    purpose: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[str] = mapped_column(String(64))
