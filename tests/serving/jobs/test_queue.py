"""The line of jobs: accepted once, drawn by one worker, ended once, whatever dies in between."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from safelight.database.connect import Database, open_database
from safelight.errors import IdempotencyConflict, InvalidRequest, StorageFailed, UnknownJob
from safelight.serving.jobs.queue import LEASE_S, MOST_ATTEMPTS, JobQueue, Order, Terms, Worker

ORDER = Order(spec={"prompt": "a red apple"}, encoding={})


class Clock:
    """Time that passes when a test says so."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(database: Database, clock: Clock) -> JobQueue:
    return JobQueue(database, clock=clock)


def elsewhere(name: str = "other") -> Worker:
    """A worker on another machine: only its lease says whether it lives."""
    return Worker(host=name, pid=1)


def test_a_job_goes_through_its_states_and_every_change_is_an_event(queue: JobQueue) -> None:
    me = Worker()
    [job] = queue.put([ORDER], Terms())
    assert queue.get(job.id).state == "queued"
    [mine] = queue.claim(me, most=5)
    assert (mine.id, mine.state, mine.attempts) == (job.id, "running", 1)
    assert queue.finish(mine, me, asset_id="a" * 64, seconds=1.5, compute_s=0.5, total_steps=20)
    done = queue.get(job.id)
    assert done.asset_id == "a" * 64
    assert (done.step, done.total_steps) == (20, 20), "although no heartbeat came before the end"
    assert [event.kind for event in queue.events(job.id)] == ["queued", "running", "done"]
    assert [event.number for event in queue.events(job.id, after=1)] == [2, 3]


def test_a_job_ends_once(queue: JobQueue) -> None:
    me = Worker()
    [job] = queue.put([ORDER], Terms())
    queue.claim(me, most=1)
    assert queue.finish(job, me, asset_id="a" * 64, seconds=1, compute_s=1)
    assert not queue.finish(job, me, asset_id="b" * 64, seconds=1, compute_s=1)
    assert not queue.fail(job, me, {"status": 500, "code": "job_failed", "message": "late"})
    assert queue.cancel(job.id).state == "done"


def test_each_job_is_claimed_by_one_worker(queue: JobQueue) -> None:
    accepted = {job.id for _ in range(20) for job in queue.put([ORDER, ORDER], Terms())}
    workers = [elsewhere(f"machine-{n}") for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        claimed = [job.id for jobs in pool.map(lambda w: queue.claim(w, most=40), workers) for job in jobs]
    assert len(claimed) == len(set(claimed))
    claimed += [job.id for job in queue.claim(workers[0], most=40)]
    assert set(claimed) == accepted


def test_a_worker_whose_lease_ran_out_loses_its_job_and_cannot_end_it(queue: JobQueue, clock: Clock) -> None:
    dead, alive = elsewhere(), Worker()
    [job] = queue.put([ORDER], Terms())
    queue.claim(dead, most=1)
    assert queue.recover(alive) == []
    clock.now += LEASE_S + 1
    assert queue.recover(alive) == [job.id]
    assert not queue.finish(job, dead, asset_id="a" * 64, seconds=1, compute_s=1)
    [again] = queue.claim(alive, most=1)
    assert again.attempts == 2
    assert queue.finish(again, alive, asset_id="b" * 64, seconds=1, compute_s=1)


def test_a_lease_that_is_renewed_is_kept(queue: JobQueue, clock: Clock) -> None:
    other = elsewhere()
    [job] = queue.put([ORDER], Terms())
    queue.claim(other, most=1)
    clock.now += LEASE_S - 1
    assert queue.renew(other, {job.id: (3, 20)}) == set()
    clock.now += LEASE_S - 1
    assert queue.recover(Worker()) == []
    assert (queue.get(job.id).step, queue.get(job.id).total_steps) == (3, 20)


def test_a_process_that_died_on_this_machine_is_noticed_at_once(queue: JobQueue) -> None:
    me = Worker()
    # The same process id, as in a container that was started again: only the token tells them apart.
    queue.put([ORDER], Terms())
    [job] = queue.claim(Worker(), most=1)
    assert queue.recover(me) == [job.id]


def test_a_job_that_kills_its_server_again_and_again_fails(queue: JobQueue, clock: Clock) -> None:
    [job] = queue.put([ORDER], Terms())
    for _ in range(MOST_ATTEMPTS):
        assert queue.claim(elsewhere(), most=1)
        clock.now += LEASE_S + 1
        queue.recover(Worker())
    failed = queue.get(job.id)
    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["code"] == "job_failed"


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


def test_who_floods_the_line_does_not_hold_up_the_others(queue: JobQueue) -> None:
    queue.put([ORDER] * 50, Terms(tenant="flood"))
    queue.put([ORDER] * 3, Terms(tenant="ann"))
    tenants = [job.tenant for job in queue.claim(Worker(), most=6)]
    assert tenants.count("ann") == 3


def test_a_higher_priority_goes_first(queue: JobQueue) -> None:
    queue.put([ORDER], Terms())
    [urgent] = queue.put([ORDER], Terms(priority=5))
    assert queue.claim(Worker(), most=1)[0].id == urgent.id


def test_cancelling(queue: JobQueue) -> None:
    me = Worker()
    waiting, running = queue.put([ORDER, ORDER], Terms())
    [claimed] = queue.claim(me, most=1)
    assert claimed.id == waiting.id
    assert queue.cancel(running.id).state == "cancelled"
    assert queue.cancel(waiting.id).state == "running", "its worker has not stopped yet"
    assert queue.renew(me, {waiting.id: (1, 2)}) == {waiting.id}
    assert queue.cancelled(waiting, me)
    assert queue.get(waiting.id).state == "cancelled"


def test_a_job_cancelled_while_its_worker_was_dead_is_not_drawn_again(queue: JobQueue, clock: Clock) -> None:
    [job] = queue.put([ORDER], Terms())
    queue.claim(elsewhere(), most=1)
    queue.cancel(job.id)
    clock.now += LEASE_S + 1
    queue.recover(Worker())
    assert queue.get(job.id).state == "cancelled"


def test_a_job_that_waited_too_long_expires(queue: JobQueue, clock: Clock) -> None:
    [job] = queue.put([ORDER], Terms(expires=clock.now + 5))
    assert queue.expire() == []
    clock.now += 6
    assert queue.expire() == [job.id]
    assert queue.claim(Worker(), most=1) == []


def test_a_job_put_back_waits_its_time(queue: JobQueue, clock: Clock) -> None:
    me = Worker()
    queue.put([ORDER], Terms())
    [job] = queue.claim(me, most=1)
    assert queue.put_back(job, me, delay_s=10, why="the disk is full")
    assert queue.claim(me, most=1) == []
    clock.now += 11
    assert queue.claim(me, most=1)[0].id == job.id


def test_only_ones_own_jobs_are_seen(queue: JobQueue) -> None:
    [job] = queue.put([ORDER], Terms(tenant="joe"))
    assert queue.get(job.id, tenant="joe").id == job.id
    with pytest.raises(UnknownJob):
        queue.get(job.id, tenant="ann")
    assert queue.find(tenant="ann") == []


def test_pages_go_on_where_the_last_ended(queue: JobQueue) -> None:
    ids = [job.id for _ in range(5) for job in queue.put([ORDER], Terms())]
    first = [job.id for job in queue.find(limit=3)]
    rest = [job.id for job in queue.find(limit=3, before=first[-1])]
    assert sorted(first + rest) == sorted(ids)


def test_all_is_there_after_opening_again(database_url: str) -> None:
    database = open_database(database_url)
    [job] = JobQueue(database).put([ORDER], Terms())
    database.close()
    again = open_database(database_url)
    assert JobQueue(again).get(job.id).spec == ORDER.spec
    again.close()


def test_a_database_that_cannot_be_had_is_said_plainly() -> None:
    with pytest.raises(InvalidRequest, match="not supported; say sqlite or postgresql"):
        open_database("mysql://localhost/x")
    with pytest.raises(StorageFailed, match="cannot open the database"):
        open_database("sqlite:////no/such/folder/x.db")
    with pytest.raises(StorageFailed, match="cannot open the database"):
        open_database("postgresql://nobody@/x?host=/no/such/folder")
