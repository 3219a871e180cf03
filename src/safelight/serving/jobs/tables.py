"""Database tables of jobs: the jobs, their events and workers, usage, picture holders, API keys and secrets."""

from typing import Any

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from safelight.database.tables import Base

STATES = ("queued", "running", "done", "failed", "cancelled", "expired")
ENDED = ("done", "failed", "cancelled", "expired")
TRAINING = "training"
"""The task of a training job, which runs in a process of its own."""


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
    """The id of the first job of its request, shared by all jobs of the request."""
    place: Mapped[int] = mapped_column(default=0)
    """Its index among the jobs of its request."""
    tenant: Mapped[str] = mapped_column(String(64), default="")
    """The id of the caller's API key; empty on a server without keys."""
    idempotency_key: Mapped[str | None] = mapped_column(String(255), default=None)
    request_digest: Mapped[str] = mapped_column(String(64), default="")
    """sha256 of the request, to distinguish a retry from another request under the same idempotency key."""
    spec: Mapped[dict[str, Any]]
    encoding: Mapped[dict[str, Any]]
    priority: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(String(16), default="queued")
    created: Mapped[float]
    not_before: Mapped[float] = mapped_column(default=0.0)
    """Its position in the queue: when it was accepted, or the earliest time of its next attempt."""
    expires: Mapped[float | None] = mapped_column(default=None)
    """A job that has not started by then never does."""
    started: Mapped[float | None] = mapped_column(default=None)
    finished: Mapped[float | None] = mapped_column(default=None)
    worker: Mapped[str] = mapped_column(String(128), default="")
    """The token of the worker process that runs it."""
    attempts: Mapped[int] = mapped_column(default=0)
    """How often it was claimed: with the id, the fence that every write of an attempt has to pass."""
    drawing: Mapped[bool] = mapped_column(default=False)
    """This attempt has begun to draw, so if its process dies, this job may be the cause."""
    suspect: Mapped[bool] = mapped_column(default=False)
    """A process died while it drew this job and others; it is drawn alone from now on."""
    crashes: Mapped[int] = mapped_column(default=0)
    """How many processes died while they drew it alone."""
    cancel_asked: Mapped[bool] = mapped_column(default=False)
    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int] = mapped_column(default=0)
    asset_id: Mapped[str | None] = mapped_column(String(64), default=None)
    error: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    """`status`, `code` and `message` of the error."""
    seconds: Mapped[float] = mapped_column(default=0.0)
    compute_s: Mapped[float] = mapped_column(default=0.0)
    """Network seconds of all its attempts, including failed ones."""
    webhook_url: Mapped[str | None] = mapped_column(String(2048), default=None)
    webhook_state: Mapped[str] = mapped_column(String(16), default="")
    """Empty, or `due`, `sent`, `given up`."""
    webhook_attempts: Mapped[int] = mapped_column(default=0)
    webhook_due: Mapped[float] = mapped_column(default=0.0)


class EventRow(Base):
    """One event of a job, numbered from 1, so that a listener can resume after a disconnect."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    at: Mapped[float]
    data: Mapped[dict[str, Any]]


class WorkerRow(Base):
    """A worker process. Its token is unique among all, living or dead; host and pid are for operators."""

    __tablename__ = "workers"

    token: Mapped[str] = mapped_column(String(32), primary_key=True)
    host: Mapped[str] = mapped_column(String(64))
    pid: Mapped[int]
    began: Mapped[float]
    beat: Mapped[float]
    """The time of its last heartbeat, sent while it holds jobs."""


class UsageRow(Base):
    """The share of one job in its tenant's quota; the row stays when the job is deleted."""

    __tablename__ = "usage"
    __table_args__ = (Index("used_by", "tenant", "asked"),)

    job_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    asked: Mapped[float]
    pictures: Mapped[int]
    """1 while it may still become a picture, and if one was drawn, even in part."""
    compute_s: Mapped[float]


class HolderRow(Base):
    """A tenant that may see a stored picture: its job made it or named it, or it uploaded it."""

    __tablename__ = "holders"

    asset_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)


class KeyRow(Base):
    """An API key, its scopes and limits; only the sha256 of its secret is stored."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    """Unique among the keys in use."""
    secret_sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[str] = mapped_column(String(255), default="draw")
    """`draw`, `admin`, separated by spaces."""
    created: Mapped[float]
    revoked: Mapped[float | None] = mapped_column(default=None)
    per_minute: Mapped[int | None] = mapped_column(default=None)
    """Maximum number of pictures in any sixty seconds."""
    pictures_per_day: Mapped[int | None] = mapped_column(default=None)
    compute_s_per_day: Mapped[float | None] = mapped_column(default=None)
    priority: Mapped[int] = mapped_column(default=0)
    """The highest priority its jobs may have."""
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """The options that this key set through AUTOMATIC1111's /sdapi/v1/options."""


class SecretRow(Base):
    """The server's own secrets by purpose, created once and shared by all processes on this database."""

    __tablename__ = "secrets"

    purpose: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[str] = mapped_column(String(64))
