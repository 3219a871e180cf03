"""Jobs in the hands of workers: drawn by one, ended once, whatever dies, hangs or comes back in between."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.serving.jobs.conftest import Clock

from safelight.errors import StorageFailed
from safelight.serving.jobs.attempts import LEASE_S, MAX_ATTEMPTS, MAX_CRASHES, Attempts, JobProgress
from safelight.serving.jobs.queue import JobQueue, NewJob, Terms
from safelight.serving.jobs.tables import JobRow

ORDER = NewJob(spec={"prompt": "a red apple"}, encoding={})
TRAINING = NewJob(spec={"task": "training"}, encoding={})
FAULT = {"status": 500, "code": "job_failed", "message": "late"}


@pytest.fixture
def me(queue: JobQueue) -> Attempts:
    return Attempts(queue)


@pytest.fixture
def other(queue: JobQueue) -> Attempts:
    return Attempts(queue)


def put(queue: JobQueue, count: int = 1) -> list[JobRow]:
    return queue.put([ORDER] * count, Terms())


def kinds(queue: JobQueue, job: JobRow) -> list[str]:
    return [event.kind for event in queue.events(job.id)]


def test_a_job_goes_through_its_states_and_every_change_is_an_event(queue: JobQueue, me: Attempts) -> None:
    [job] = put(queue)
    assert queue.get(job.id).state == "queued"
    [mine] = me.claim(limit=5)
    assert (mine.id, mine.state, mine.attempts) == (job.id, "running", 1)
    assert me.finish(mine, asset_id="a" * 64, seconds=1.5, progress=JobProgress(total_steps=20, compute_s=0.5))
    done = queue.get(job.id)
    assert (done.asset_id, done.compute_s) == ("a" * 64, 0.5)
    assert (done.step, done.total_steps) == (20, 20), "although no heartbeat came before the end"
    assert kinds(queue, job) == ["queued", "running", "done"]
    assert [event.number for event in queue.events(job.id, after=1)] == [2, 3]


def test_a_job_ends_once(queue: JobQueue, me: Attempts) -> None:
    put(queue)
    [job] = me.claim(limit=1)
    assert me.finish(job, asset_id="a" * 64, seconds=1)
    assert not me.finish(job, asset_id="b" * 64, seconds=1)
    assert not me.fail(job, FAULT)
    assert not me.put_back(job, reason="late")
    assert queue.cancel(job.id).state == "done"
    assert kinds(queue, job) == ["queued", "running", "done"], "what changed nothing is no event"


def test_each_job_is_claimed_by_one_worker(queue: JobQueue) -> None:
    accepted = {job.id for _ in range(20) for job in put(queue, 2)}
    workers = [Attempts(queue) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        claimed = [job.id for jobs in pool.map(lambda worker: worker.claim(limit=40), workers) for job in jobs]
    assert len(claimed) == len(set(claimed))
    claimed += [job.id for job in workers[0].claim(limit=40)]
    assert set(claimed) == accepted


def test_a_worker_without_heartbeats_loses_its_job_and_cannot_end_it(
    queue: JobQueue, clock: Clock, me: Attempts, other: Attempts
) -> None:
    [job] = put(queue)
    [early] = other.claim(limit=1)
    assert me.recover([]) == []
    clock.now += LEASE_S + 1
    assert me.recover([]) == [job.id]
    assert not other.finish(early, asset_id="a" * 64, seconds=1)
    [again] = me.claim(limit=1)
    assert again.attempts == 2
    assert me.finish(again, asset_id="b" * 64, seconds=1)
    assert kinds(queue, job) == ["queued", "running", "queued", "running", "done"]


def test_an_old_attempt_of_a_worker_cannot_change_its_new_one(
    queue: JobQueue, clock: Clock, me: Attempts, other: Attempts
) -> None:
    [job] = put(queue)
    [early] = me.claim(limit=1)
    clock.now += LEASE_S + 1
    other.recover([])
    [late] = me.claim(limit=1)
    assert me.renew({job.id: (early, JobProgress(step=3))}).lost == {job.id}
    for change in (me.cancelled, lambda one: me.put_back(one, reason="late"), lambda one: me.fail(one, FAULT)):
        assert not change(early)
    assert queue.get(job.id).state == "running"
    assert me.finish(late, asset_id="a" * 64, seconds=1)


def test_a_worker_with_heartbeats_keeps_its_jobs(queue: JobQueue, clock: Clock, me: Attempts, other: Attempts) -> None:
    put(queue)
    [job] = other.claim(limit=1)
    clock.now += LEASE_S - 1
    kept = other.renew({job.id: (job, JobProgress(step=3, total_steps=20, compute_s=2.0))})
    assert not kept.cancelled | kept.lost  # pyright: ignore[reportOperatorIssue]
    clock.now += LEASE_S - 1
    assert me.recover([]) == []
    row = queue.get(job.id)
    assert (row.step, row.total_steps, row.compute_s) == (3, 20, 2.0)


def test_a_job_that_its_live_worker_no_longer_holds_is_requeued(queue: JobQueue, clock: Clock, me: Attempts) -> None:
    kept, dropped = put(queue, 2)
    hands = {job.id: (job, JobProgress()) for job in me.claim(limit=2)}
    clock.now += LEASE_S + 1
    me.renew({kept.id: hands[kept.id]})
    assert me.recover([kept.id]) == [dropped.id]


def test_a_job_that_its_live_worker_no_longer_holds_is_not_suspect(queue: JobQueue, clock: Clock, me: Attempts) -> None:
    """As when the answer to a claim is lost on its way: no process died of it."""
    put(queue, 3)
    for _ in range(2):
        for job in me.claim(limit=3):
            me.begin(job)
        clock.now += LEASE_S + 1
        assert len(me.recover([])) == 3
    assert len(me.claim(limit=3)) == 3, "none of them has to be drawn alone"


def test_a_job_that_its_live_worker_loses_repeatedly_fails(queue: JobQueue, clock: Clock, me: Attempts) -> None:
    [job] = put(queue)
    while queue.get(job.id).state == "queued":
        assert me.claim(limit=1)[0].attempts <= MAX_ATTEMPTS + MAX_CRASHES
        clock.now += LEASE_S + 1
        me.recover([])
    assert queue.get(job.id).state == "failed"


def test_a_worker_whose_clock_is_behind_is_alive(queue: JobQueue, clock: Clock, me: Attempts) -> None:
    [job] = put(queue)
    behind = Clock()
    behind.now = clock.now
    late = Attempts(JobQueue(queue.database, clock=behind))
    [taken] = late.claim(limit=1)
    me.recover([])
    clock.now += 2 * LEASE_S
    for _ in range(3):
        clock.now += 1
        behind.now += 1
        late.renew({job.id: (taken, JobProgress())})
        assert me.recover([]) == []
    clock.now += LEASE_S + 1
    assert me.recover([]) == [job.id], "and dead once it says no more"


def test_after_a_clock_is_set_back_jobs_of_dead_workers_are_recovered(
    queue: JobQueue, clock: Clock, me: Attempts, other: Attempts
) -> None:
    [job] = put(queue)
    other.claim(limit=1)
    clock.now -= 3600
    assert me.recover([]) == [job.id]


def test_a_clock_that_is_set_back_delays_no_job(queue: JobQueue, clock: Clock, me: Attempts) -> None:
    put(queue)
    [job] = me.claim(limit=1)
    me.put_back(job, delay_s=10, reason="the disk is full")
    put(queue)
    clock.now -= 3600
    assert len(me.claim(limit=2)) == 2


def test_a_training_run_does_not_use_the_place_of_a_picture(
    queue: JobQueue, clock: Clock, me: Attempts, other: Attempts
) -> None:
    """A worker has one run in hand; others may take the next, and pictures pass those that wait."""
    first, second = queue.put([TRAINING] * 2, Terms())
    clock.now += 1
    [picture] = put(queue)
    assert [job.id for job in me.claim(limit=3)] == [first.id, picture.id]
    assert me.claim(limit=3, training=True) == []
    assert [job.id for job in other.claim(limit=3)] == [second.id]


def test_concurrent_first_heartbeats_of_a_worker_succeed(queue: JobQueue) -> None:
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            new = Attempts(queue)
            list(pool.map(lambda worker: worker.heartbeat(patience_s=20.0), [new] * 4))


def test_a_job_that_a_dead_worker_had_not_begun_is_not_suspect(
    queue: JobQueue, clock: Clock, me: Attempts, other: Attempts
) -> None:
    put(queue, 4)
    drawn, *waiting = other.claim(limit=4)
    assert other.begin(drawn)
    clock.now += LEASE_S + 1
    me.recover([])
    assert queue.get(drawn.id).suspect
    assert not any(queue.get(job.id).suspect for job in waiting)


def test_a_suspect_is_drawn_alone(queue: JobQueue, clock: Clock, me: Attempts, other: Attempts) -> None:
    put(queue)
    [suspect] = other.claim(limit=1)
    other.begin(suspect)
    clock.now += LEASE_S + 1
    me.recover([])
    later = put(queue, 2)
    assert me.claim(limit=8, busy=True) == [], "it is next, and waits until nothing else is drawn"
    assert [job.id for job in me.claim(limit=8)] == [suspect.id]
    assert [job.id for job in other.claim(limit=8)] == [job.id for job in later]


def test_a_job_that_kills_its_server_repeatedly_fails_alone(queue: JobQueue, clock: Clock, me: Attempts) -> None:
    [deadly], harmless = put(queue), put(queue, 9)
    deaths = 0
    while queue.get(deadly.id).state != "failed":
        clock.now += LEASE_S + 1
        me.recover([])
        victim = Attempts(queue)
        claimed = victim.claim(limit=4)
        for job in claimed:
            victim.begin(job)
        if deadly.id in {job.id for job in claimed}:
            deaths += 1
            continue
        for job in claimed:
            victim.finish(job, asset_id="a" * 64, seconds=1)
    assert deaths == 1 + MAX_CRASHES
    failed = queue.get(deadly.id)
    assert failed.error is not None
    assert (failed.error["code"], failed.crashes) == ("job_failed", MAX_CRASHES)
    while claimed := me.claim(limit=4):
        for job in claimed:
            me.finish(job, asset_id="a" * 64, seconds=1)
    assert {queue.get(job.id).state for job in harmless} == {"done"}
    assert max(queue.get(job.id).crashes for job in harmless) == 0


def test_an_impatient_probe_fails_no_harmless_job(queue: JobQueue, clock: Clock, me: Attempts) -> None:
    """Killed again and again before anything is seen to be drawn, as a server is whose model takes long to load."""
    jobs = put(queue, 40)
    for _ in range(25):
        Attempts(queue).claim(limit=32)
        clock.now += LEASE_S + 1
        me.recover([])
    while claimed := me.claim(limit=32):
        for job in claimed:
            assert me.finish(job, asset_id="a" * 64, seconds=1)
    assert {queue.get(job.id).state for job in jobs} == {"done"}


def test_a_training_run_is_not_blamed_for_a_dead_server(queue: JobQueue, clock: Clock, me: Attempts) -> None:
    [run] = queue.put([TRAINING], Terms())
    for _ in range(MAX_ATTEMPTS - 1):
        [taken] = Attempts(queue).claim(limit=1)
        clock.now += LEASE_S + 1
        me.recover([])
        assert not queue.get(run.id).suspect
    assert taken.attempts == MAX_ATTEMPTS - 1
    Attempts(queue).claim(limit=1)
    clock.now += LEASE_S + 1
    me.recover([])
    assert queue.get(run.id).state == "failed", "what is tried without end is never told"


def test_a_tenant_with_many_jobs_does_not_delay_the_others(queue: JobQueue, me: Attempts) -> None:
    queue.put([ORDER] * 50, Terms(tenant="flood"))
    queue.put([ORDER] * 3, Terms(tenant="ann"))
    tenants = [job.tenant for job in me.claim(limit=6)]
    assert tenants.count("ann") == 3


def test_a_higher_priority_goes_first(queue: JobQueue, me: Attempts) -> None:
    put(queue)
    [urgent] = queue.put([ORDER], Terms(priority=5))
    assert me.claim(limit=1)[0].id == urgent.id


def test_cancelling(queue: JobQueue, me: Attempts) -> None:
    waiting, running = put(queue, 2)
    [claimed] = me.claim(limit=1)
    assert claimed.id == waiting.id
    assert queue.cancel(running.id).state == "cancelled"
    assert queue.cancel(waiting.id).state == "running", "its worker has not stopped yet"
    assert me.renew({waiting.id: (claimed, JobProgress(step=1, total_steps=2))}).cancelled == {waiting.id}
    assert me.cancelled(claimed)
    assert queue.get(waiting.id).state == "cancelled"


@pytest.mark.parametrize("end", ["dead", "stopped"])
def test_a_job_that_was_cancelled_is_not_drawn_again(
    queue: JobQueue, clock: Clock, me: Attempts, other: Attempts, end: str
) -> None:
    put(queue)
    [job] = other.claim(limit=1)
    queue.cancel(job.id)
    if end == "stopped":
        other.put_back(job, reason="the server was stopped")
    clock.now += LEASE_S + 1
    me.recover([])
    assert queue.get(job.id).state == "cancelled"


def test_a_job_put_back_waits_its_time(queue: JobQueue, clock: Clock, me: Attempts) -> None:
    put(queue)
    [job] = me.claim(limit=1)
    assert me.put_back(job, delay_s=10, reason="the disk is full")
    assert me.claim(limit=1) == []
    clock.now += 11
    assert me.claim(limit=1)[0].id == job.id


def test_a_worker_that_left_is_dead_at_once(queue: JobQueue, me: Attempts, other: Attempts) -> None:
    [job] = put(queue)
    other.claim(limit=1)
    other.unregister()
    assert me.recover([]) == [job.id]


def test_a_heartbeat_that_cannot_be_written_is_an_error(queue: JobQueue, me: Attempts) -> None:
    me.heartbeat(patience_s=1.0)
    queue.database.write(lambda session: session.connection().exec_driver_sql("DROP TABLE workers"))
    try:
        with pytest.raises(StorageFailed, match="cannot be written"):
            me.heartbeat(patience_s=0.1)
    finally:
        from safelight.serving.jobs.tables import WorkerRow

        WorkerRow.metadata.tables["workers"].create(queue.database.engine)
