"""The line of jobs as callers see it: accepted once, found again, cancelled, expired."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tests.serving.jobs.conftest import Clock

from safelight.database.connect import Database, open_database
from safelight.errors import IdempotencyConflict, InvalidRequest, StorageFailed, UnknownJob
from safelight.serving.jobs.attempts import Attempts
from safelight.serving.jobs.keys import Keys
from safelight.serving.jobs.queue import Change, JobQueue, NewJob, Terms

ORDER = NewJob(spec={"prompt": "a red apple"}, encoding={})


def test_a_retry_under_the_same_idempotency_key_gets_the_same_jobs(queue: JobQueue) -> None:
    terms = Terms(tenant="joe", idempotency_key="k", request_digest="d")
    first = queue.put([ORDER, ORDER], terms)
    assert [job.id for job in queue.put([ORDER, ORDER], terms)] == [job.id for job in first]
    with pytest.raises(IdempotencyConflict, match="another request"):
        queue.put([ORDER], replace(terms, request_digest="e"))
    # Another caller's key of the same name is another key.
    assert queue.put([ORDER], replace(terms, tenant="ann"))[0].id not in {job.id for job in first}


def test_retries_at_the_same_moment_are_one_request(queue: JobQueue) -> None:
    terms = Terms(idempotency_key="k", request_digest="d")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: [job.id for job in queue.put([ORDER], terms)], range(8)))
    assert len({tuple(ids) for ids in answers}) == 1
    assert queue.counts()["queued"] == 1


def test_a_tenant_sees_only_its_own_jobs(queue: JobQueue) -> None:
    [job] = queue.put([ORDER], Terms(tenant="joe"))
    assert queue.get(job.id, tenant="joe").id == job.id
    with pytest.raises(UnknownJob):
        queue.get(job.id, tenant="ann")
    assert queue.find(tenant="ann") == []


def test_a_page_continues_where_the_last_one_ended(queue: JobQueue) -> None:
    ids = [job.id for _ in range(5) for job in queue.put([ORDER], Terms())]
    first = [job.id for job in queue.find(limit=3)]
    rest = [job.id for job in queue.find(limit=3, before=first[-1])]
    assert sorted(first + rest) == sorted(ids)


def test_jobs_survive_reopening_the_database(database_url: str) -> None:
    database = open_database(database_url)
    [job] = JobQueue(database).put([ORDER], Terms())
    database.close()
    again = open_database(database_url)
    assert JobQueue(again).get(job.id).spec == ORDER.spec
    again.close()


def test_an_unavailable_database_gives_a_clear_error() -> None:
    with pytest.raises(InvalidRequest, match="not supported; use sqlite or postgresql"):
        open_database("mysql://localhost/x")
    with pytest.raises(StorageFailed, match="cannot open the database"):
        open_database("sqlite:////no/such/folder/x.db")
    with pytest.raises(StorageFailed, match="cannot open the database"):
        open_database("postgresql://nobody@/x?host=/no/such/folder")


def test_a_job_that_waited_too_long_expires(queue: JobQueue, clock: Clock) -> None:
    [job] = queue.put([ORDER], Terms(expires=clock.now + 5))
    assert queue.expire() == []
    clock.now += 6
    assert queue.expire() == [job.id]
    assert Attempts(queue).claim(limit=1) == []


def test_an_expired_job_is_not_claimed_before_expire_runs(queue: JobQueue, clock: Clock) -> None:
    """As after a night without a server."""
    queue.put([ORDER], Terms(expires=clock.now + 5))
    clock.now += 6
    assert Attempts(queue).claim(limit=1) == []


def test_a_job_that_began_in_time_does_not_expire(queue: JobQueue, clock: Clock) -> None:
    [job] = queue.put([ORDER], Terms(expires=clock.now + 5))
    me = Attempts(queue)
    [taken] = me.claim(limit=1)
    clock.now += 6
    me.put_back(taken, reason="the server was stopped")
    assert queue.expire() == []
    assert [again.id for again in me.claim(limit=1)] == [job.id]


def test_a_retry_does_not_join_a_request_that_is_being_cancelled(queue: JobQueue) -> None:
    terms = Terms(request_digest="d", retried=True)
    [job] = queue.put([ORDER], terms)
    assert [again.id for again in queue.put([ORDER], terms)] == [job.id]
    Attempts(queue).claim(limit=1)
    assert queue.cancel(job.id).state == "running", "until its worker has stopped"
    assert queue.put([ORDER], terms)[0].id != job.id


def test_servers_that_start_together_agree_on_their_secret(database: Database) -> None:
    with ThreadPoolExecutor(4) as pool:
        for purpose in map(str, range(10)):
            assert len(set(pool.map(Keys(database).secret, [purpose] * 4))) == 1


def test_a_failing_listener_does_not_undo_an_accepted_job(database: Database) -> None:
    def hear(change: Change) -> None:
        raise StorageFailed(f"the name of a key, say, cannot be read: {change.state}")

    queue = JobQueue(database, on_event=hear)
    me = Attempts(queue)
    [job] = queue.put([ORDER], Terms())
    [taken] = me.claim(limit=1)
    assert me.finish(taken, asset_id="a" * 64, seconds=1)
    assert queue.get(job.id).state == "done"
