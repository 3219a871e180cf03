"""What callers have asked for and used, and what they may: read and written in the transaction that accepts."""

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
    """What a request has to stay below; None is no limit."""

    in_line: int | None = None
    """Jobs of everybody that wait."""
    per_minute: int | None = None
    """Pictures asked for in any sixty seconds, whatever became of them."""
    pictures_per_day: int | None = None
    """Pictures drawn, even in part, or still to be drawn, of those asked for since midnight, UTC."""
    compute_s_per_day: float | None = None


def require_room(session: Session, limits: Limits, tenant: str, num_pictures: int, *, now: float) -> None:
    """
    Raises:
        InvalidRequest: so many pictures will never fit.
        TooManyRequests: they do not fit now; says when they will.
    """
    if limits.in_line is not None:
        require_line(session, limits.in_line, num_pictures)
    if limits.per_minute is not None:
        require_rate(session, limits.per_minute, tenant, num_pictures, now=now)
    if limits.pictures_per_day is not None or limits.compute_s_per_day is not None:
        require_quota(session, limits, tenant, num_pictures, now=now)


def require_line(session: Session, most: int, num_pictures: int) -> None:
    if num_pictures > most:
        raise InvalidRequest(f"{num_pictures} pictures at once; {most} fit in the line, so ask for fewer")
    queued = session.scalar(select(func.count()).where(JobRow.state == "queued")) or 0
    if over := max(0, queued + num_pictures - most):
        raise TooManyRequests(
            f"{queued} jobs are in line and {most} fit",
            retry_after_s=max(1.0, over * pace_s(session)),
            code="queue_full",
        )


def require_rate(session: Session, most: int, tenant: str, num_pictures: int, *, now: float) -> None:
    if num_pictures > most:
        raise InvalidRequest(f"{num_pictures} pictures at once; this key may have {most} a minute, so ask for fewer")
    lately = select(UsageRow.asked).where(UsageRow.tenant == tenant, UsageRow.asked > now - MINUTE_S)
    asked = list(session.scalars(lately.order_by(UsageRow.asked)))
    if over := max(0, len(asked) + num_pictures - most):
        raise TooManyRequests(
            f"{len(asked)} of {most} pictures a minute are used",
            retry_after_s=asked[over - 1] + MINUTE_S - now,
            code="rate_limit_exceeded",
        )


def require_quota(session: Session, limits: Limits, tenant: str, num_pictures: int, *, now: float) -> None:
    most = limits.pictures_per_day
    if most is not None and num_pictures > most:
        raise InvalidRequest(f"{num_pictures} pictures at once; this key may have {most} a day, so ask for fewer")
    midnight = now - now % DAY_S
    pictures, compute_s = used(session, tenant, since=midnight)
    if (most is not None and pictures + num_pictures > most) or (
        limits.compute_s_per_day is not None and compute_s >= limits.compute_s_per_day
    ):
        raise TooManyRequests(
            f"today's quota is used: {pictures} pictures, {compute_s:.0f} s of network time",
            retry_after_s=midnight + DAY_S - now,
            code="quota_exceeded",
        )


def used(session: Session, tenant: str, *, since: float) -> tuple[int, float]:
    """Pictures and network seconds of what was asked for since then."""
    sums = func.coalesce(func.sum(UsageRow.pictures), 0), func.coalesce(func.sum(UsageRow.compute_s), 0.0)
    pictures, compute_s = session.execute(select(*sums).where(UsageRow.tenant == tenant, UsageRow.asked >= since)).one()
    return int(pictures), float(compute_s)


def pace_s(session: Session) -> float:
    """Seconds between the ends of the last pictures: how soon there is room for one more."""
    query = select(JobRow.finished).where(JobRow.state == "done").order_by(JobRow.finished.desc()).limit(20)
    ends = [end for end in session.scalars(query) if end is not None]
    return (ends[0] - ends[-1]) / (len(ends) - 1) if len(ends) > 1 else USUAL_PACE_S


def expect(session: Session, job: JobRow) -> None:
    """The job was accepted."""
    pictures = 0 if job.spec.get("task") == TRAINING else 1
    session.add(UsageRow(job_id=job.id, tenant=job.tenant, asked=job.created, pictures=pictures, compute_s=0.0))


def count(session: Session, job: JobRow, state: str) -> None:
    """The job, whose row says what was computed, is in this state now: what it counts for.

    A picture that was cancelled while it was drawn counts; one that never began, or that the server failed to draw,
    does not.
    """
    values: dict[str, float] = {"compute_s": job.compute_s}
    if state in ("failed", "expired") or (state == "cancelled" and not job.compute_s):
        values["pictures"] = 0
    session.execute(update(UsageRow).where(UsageRow.job_id == job.id).values(**values))
