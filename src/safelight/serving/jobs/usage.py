"""Usage of each tenant, and the limits on it: read and written in the transaction that accepts jobs."""

from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from safelight.errors import InvalidRequest, TooManyRequests
from safelight.serving.jobs.tables import TRAINING, JobRow, UsageRow

MINUTE_S = 60.0
DAY_S = 86_400.0
USUAL_PACE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits that a request must not exceed; None is no limit."""

    in_line: int | None = None
    """Queued jobs of all tenants."""
    per_minute: int | None = None
    """Pictures requested in any sixty seconds, whatever their outcome."""
    pictures_per_day: int | None = None
    """Pictures requested since midnight, UTC, that were drawn, even in part, or are still to be drawn."""
    compute_s_per_day: float | None = None


def require_capacity(session: Session, limits: Limits, tenant: str, num_pictures: int, *, now: float) -> None:
    """
    Raises:
        InvalidRequest: the request alone exceeds a limit.
        TooManyRequests: a limit is reached; `retry_after_s` says for how long.
    """
    if limits.in_line is not None:
        require_queue_space(session, limits.in_line, num_pictures)
    if limits.per_minute is not None:
        require_rate(session, limits.per_minute, tenant, num_pictures, now=now)
    if limits.pictures_per_day is not None or limits.compute_s_per_day is not None:
        require_quota(session, limits, tenant, num_pictures, now=now)


def require_queue_space(session: Session, limit: int, num_pictures: int) -> None:
    if num_pictures > limit:
        raise InvalidRequest(f"{num_pictures} pictures at once; the queue holds {limit}, so request fewer")
    queued = session.scalar(select(func.count()).where(JobRow.state == "queued")) or 0
    if over := max(0, queued + num_pictures - limit):
        raise TooManyRequests(
            f"{queued} jobs are queued of at most {limit}",
            retry_after_s=max(1.0, over * pace_s(session)),
            code="queue_full",
        )


def require_rate(session: Session, limit: int, tenant: str, num_pictures: int, *, now: float) -> None:
    if num_pictures > limit:
        raise InvalidRequest(f"{num_pictures} pictures at once; this key allows {limit} a minute, so request fewer")
    recent = select(UsageRow.asked).where(UsageRow.tenant == tenant, UsageRow.asked > now - MINUTE_S)
    requested = list(session.scalars(recent.order_by(UsageRow.asked)))
    if over := max(0, len(requested) + num_pictures - limit):
        raise TooManyRequests(
            f"this key has used {len(requested)} of its {limit} pictures a minute",
            retry_after_s=requested[over - 1] + MINUTE_S - now,
            code="rate_limit_exceeded",
        )


def require_quota(session: Session, limits: Limits, tenant: str, num_pictures: int, *, now: float) -> None:
    limit = limits.pictures_per_day
    if limit is not None and num_pictures > limit:
        raise InvalidRequest(f"{num_pictures} pictures at once; this key allows {limit} a day, so request fewer")
    midnight = now - now % DAY_S
    pictures, compute_s = used(session, tenant, since=midnight)
    if (limit is not None and pictures + num_pictures > limit) or (
        limits.compute_s_per_day is not None and compute_s >= limits.compute_s_per_day
    ):
        raise TooManyRequests(
            f"today's quota is used: {pictures} pictures, {compute_s:.0f} s of network time",
            retry_after_s=midnight + DAY_S - now,
            code="quota_exceeded",
        )


def used(session: Session, tenant: str, *, since: float) -> tuple[int, float]:
    """Pictures and network seconds of the jobs that the tenant requested since then."""
    sums = func.coalesce(func.sum(UsageRow.pictures), 0), func.coalesce(func.sum(UsageRow.compute_s), 0.0)
    pictures, compute_s = session.execute(select(*sums).where(UsageRow.tenant == tenant, UsageRow.asked >= since)).one()
    return int(pictures), float(compute_s)


def pace_s(session: Session) -> float:
    """Mean seconds between the ends of the last 20 pictures: how soon the queue has space for another."""
    query = select(JobRow.finished).where(JobRow.state == "done").order_by(JobRow.finished.desc()).limit(20)
    ends = [end for end in session.scalars(query) if end is not None]
    return (ends[0] - ends[-1]) / (len(ends) - 1) if len(ends) > 1 else USUAL_PACE_S


def add_usage(session: Session, job: JobRow) -> None:
    """Add the usage row of an accepted job."""
    pictures = 0 if job.spec.get("task") == TRAINING else 1
    session.add(UsageRow(job_id=job.id, tenant=job.tenant, asked=job.created, pictures=pictures, compute_s=0.0))


def update_usage(session: Session, job: JobRow, state: str) -> None:
    """Update the usage of a job that is now in `state`; its row has the computed seconds.

    A picture that was cancelled while it was drawn counts; one that never began, or that the server failed to draw,
    does not.
    """
    values: dict[str, float] = {"compute_s": job.compute_s}
    if state in ("failed", "expired") or (state == "cancelled" and not job.compute_s):
        values["pictures"] = 0
    session.execute(update(UsageRow).where(UsageRow.job_id == job.id).values(**values))
