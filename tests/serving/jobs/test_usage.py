"""What callers may have: never more than that, whenever they ask, and however their jobs end."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.serving.conftest import serving, settings_in
from tests.serving.jobs.conftest import Clock

from safelight.database.connect import open_database
from safelight.errors import InvalidRequest, TooManyRequests
from safelight.serving.jobs.attempts import Attempts, JobProgress
from safelight.serving.jobs.keys import Keys
from safelight.serving.jobs.queue import JobQueue, NewJob, Terms
from safelight.serving.jobs.usage import DAY_S, Limits

ORDER = NewJob(spec={"prompt": "a red apple"}, encoding={})
FAULT = {"status": 500, "code": "job_failed", "message": "broken"}


def joe(**limits: float) -> Terms:
    return Terms(tenant="joe", limits=Limits(**limits))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("limit", ["per_minute", "pictures_per_day", "in_line"])
def test_of_thirty_concurrent_requests_only_the_limit_passes(queue: JobQueue, limit: str) -> None:
    def ask(_: int) -> bool:
        try:
            queue.put([ORDER], joe(**{limit: 5}))
        except TooManyRequests:
            return False
        return True

    with ThreadPoolExecutor(15) as pool:
        assert sum(pool.map(ask, range(30))) == 5


def test_a_request_after_retry_after_is_accepted(queue: JobQueue, clock: Clock) -> None:
    terms = joe(per_minute=3)
    for _ in range(3):
        queue.put([ORDER], terms)
        clock.now += 10
    with pytest.raises(TooManyRequests) as early:
        queue.put([ORDER, ORDER], terms)
    assert early.value.retry_after_s == pytest.approx(40)
    clock.now += early.value.retry_after_s - 1
    with pytest.raises(TooManyRequests):
        queue.put([ORDER, ORDER], terms)
    clock.now += 1
    queue.put([ORDER, ORDER], terms)


def test_a_quota_begins_anew_at_midnight(queue: JobQueue, clock: Clock) -> None:
    terms = joe(pictures_per_day=1)
    queue.put([ORDER], terms)
    with pytest.raises(TooManyRequests) as refused:
        queue.put([ORDER], terms)
    assert refused.value.retry_after_s == pytest.approx(DAY_S - clock.now % DAY_S)
    clock.now += refused.value.retry_after_s
    queue.put([ORDER], terms)


@pytest.mark.parametrize("limit", ["per_minute", "pictures_per_day", "in_line"])
def test_a_request_beyond_the_limit_itself_is_invalid(queue: JobQueue, limit: str) -> None:
    with pytest.raises(InvalidRequest, match="request fewer"):
        queue.put([ORDER] * 3, joe(**{limit: 2}))


def test_a_retry_is_not_a_second_picture(queue: JobQueue) -> None:
    terms = replace(joe(per_minute=1), idempotency_key="k", request_digest="d")
    [job] = queue.put([ORDER], terms)
    assert [again.id for again in queue.put([ORDER], terms)] == [job.id]


@pytest.mark.parametrize(
    ("end", "pictures"),
    [("cancelled", 1), ("cancelled unseen", 0), ("failed", 0), ("done", 1), ("put back", 1)],
)
def test_computed_seconds_count_however_the_job_ended(queue: JobQueue, end: str, pictures: int) -> None:
    me = Attempts(queue)
    queue.put([ORDER], joe())
    [job] = me.claim(limit=1)
    progress = JobProgress(step=24, total_steps=30, compute_s=0.0 if end == "cancelled unseen" else 8.0)
    match end:
        case "cancelled" | "cancelled unseen":
            queue.cancel(job.id)
            me.cancelled(job, progress)
        case "failed":
            me.fail(job, FAULT, progress)
        case "done":
            me.finish(job, asset_id="a" * 64, seconds=9, progress=progress)
        case _:
            me.put_back(job, progress, reason="the server was stopped")
    assert queue.used("joe", since=0) == (pictures, progress.compute_s)


def test_the_seconds_of_every_attempt_count(queue: JobQueue) -> None:
    me = Attempts(queue)
    queue.put([ORDER], joe(compute_s_per_day=5))
    [first] = me.claim(limit=1)
    me.put_back(first, JobProgress(compute_s=2.0), reason="the disk is full")
    [second] = me.claim(limit=1)
    me.renew({second.id: (second, JobProgress(compute_s=1.0))})
    me.finish(second, asset_id="a" * 64, seconds=1, progress=JobProgress(compute_s=3.5))
    assert queue.used("joe", since=0) == (1, 5.5)
    with pytest.raises(TooManyRequests, match="6 s of network time"):
        queue.put([ORDER], joe(compute_s_per_day=5))


def test_every_request_counts_for_the_rate_whatever_its_outcome(queue: JobQueue) -> None:
    [job] = queue.put([ORDER], joe(per_minute=1))
    queue.cancel(job.id)
    with pytest.raises(TooManyRequests):
        queue.put([ORDER], joe(per_minute=1))
    assert queue.used("joe", since=0) == (0, 0.0), "but no picture of the day is gone"


def test_a_picture_cancelled_while_it_is_drawn_counts_as_used(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    database = open_database(settings.database)
    headers = {"x-api-key": Keys(database).create("joe", pictures_per_day=1)}
    database.close()
    fields = {"prompt": "a red apple", "steps": 1000, "width": 64, "height": 64}
    with serving(settings) as url:
        job = httpx.post(f"{url}/v1/jobs", json=fields, headers=headers).raise_for_status().json()
        events = f"{url}/v1/jobs/{job['id']}/events"
        with httpx.stream("GET", events, headers=headers, timeout=60) as stream:
            next(line for line in stream.iter_lines() if line == "event: step")
        cancelled = httpx.post(f"{url}/v1/jobs/{job['id']}/cancel", headers=headers).json()
        assert cancelled["state"] == "cancelled"
        assert cancelled["compute_s"] > 0
        refused = httpx.post(f"{url}/v1/jobs", json=fields, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
