"""The scheduler's choice of jobs, tested with jobs that have only the properties it uses."""

import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.engine.scheduler import LORA_BYTES, MAX_LEAD, PRIORITY_AGES_S, Scheduler

BUDGET = 8.0
_arrivals = count()


@dataclass(eq=False)
class FakeJob:
    """A job with `calls` remaining calls."""

    tenant: str = ""
    priority: int = 0
    side: int = 1
    strict: bool = False
    calls: int = 10
    waited_s: float = 0.0
    state: str = "waiting"
    paused: bool = False
    effects: dict[str, Any] = field(default_factory=dict[str, Any])
    tiling: None = None
    model: Any = field(default_factory=lambda: SimpleNamespace(digest="m"))

    def __post_init__(self) -> None:
        self.arrived = time.monotonic() - self.waited_s + 1e-6 * next(_arrivals)

    @property
    def size(self) -> tuple[int, int]:
        return self.side * 1000, self.side * 1000

    @property
    def megapixels(self) -> float:
        return float(self.side**2)


def scheduler_with(*jobs: FakeJob) -> Any:
    scheduler: Any = Scheduler(lambda _model: BUDGET)
    for job in jobs:
        scheduler.add(job)
    return scheduler


def call(scheduler: Any) -> list[FakeJob]:
    """One call of the engine, as the scheduler sees it."""
    batch = scheduler.next_batch()
    if batch:
        scheduler.charge(batch, [job.megapixels for job in batch])
    for job in batch:
        job.state = "running"
        job.calls -= 1
        if job.calls == 0:
            scheduler.remove(job)
    return batch


def calls_until(scheduler: Any, job: FakeJob, *, most: int) -> int:
    """Number of calls until the job takes part in one."""
    for number in range(1, most + 1):
        if job in call(scheduler):
            return number
    raise AssertionError(f"not served within {most} calls")


jobs = st.builds(
    FakeJob,
    tenant=st.sampled_from("ABC"),
    priority=st.integers(-2, 2),
    side=st.integers(1, 4),
    strict=st.booleans(),
    calls=st.integers(1, 5),
    waited_s=st.sampled_from([0.0, 90.0, 1000.0]),
)


@given(st.lists(jobs, min_size=1, max_size=40))
def test_a_call_keeps_its_budget_and_its_size_and_serves_everyone_in_the_end(queue: list[FakeJob]) -> None:
    scheduler = scheduler_with(*queue)
    wanted = {id(job): job.calls for job in queue}
    served: Counter[int] = Counter()
    while batch := call(scheduler):
        assert len(batch) == 1 or sum(job.megapixels for job in batch) <= BUDGET, "only a lone job may be over"
        assert len({job.size for job in batch}) == 1
        assert len(batch) == 1 or not any(job.strict for job in batch)
        assert len({id(job) for job in batch}) == len(batch)
        served.update(id(job) for job in batch)
    assert served == wanted
    assert not scheduler.jobs


def test_jobs_of_two_models_never_share_a_call() -> None:
    other = FakeJob(model=SimpleNamespace(digest="other"))
    scheduler = scheduler_with(FakeJob(), other, FakeJob())
    assert [len({job.model.digest for job in call(scheduler)}) for _ in range(4)] == [1, 1, 1, 1]


def test_as_many_as_fit_go_together() -> None:
    assert len(call(scheduler_with(*(FakeJob() for _ in range(20))))) == BUDGET


@pytest.mark.parametrize("strict", [False, True])
def test_an_odd_size_waits_no_longer_than_its_work(strict: bool) -> None:
    """One large picture and an endless stream of small ones: it is chosen once the others have had as much work."""
    small = [FakeJob(calls=10_000) for _ in range(50)]
    large = FakeJob(side=4, strict=strict, calls=100)
    scheduler = scheduler_with(*small)
    for _ in range(20):
        call(scheduler)
    scheduler.add(large)
    rounds = [calls_until(scheduler, large, most=4) for _ in range(20)]
    # 16 megapixels a call against 8: every third call, once it has begun level.
    assert max(rounds) <= 3


def test_a_newcomer_is_served_at_once_against_a_tenant_with_hundreds() -> None:
    scheduler = scheduler_with(*(FakeJob(tenant="A", calls=50) for _ in range(300)))
    for _ in range(30):
        call(scheduler)
    newcomer = FakeJob(tenant="B", calls=5)
    scheduler.add(newcomer)
    assert calls_until(scheduler, newcomer, most=2) <= 2
    assert [calls_until(scheduler, newcomer, most=2) for _ in range(4)] == [1, 1, 1, 1]


def test_a_long_queue_does_not_outgrow_a_newcomer_by_its_age() -> None:
    """A job that waited long overtakes one of higher priority, but one tenant's backlog never overtakes all others."""
    scheduler = scheduler_with(*(FakeJob(tenant="A", calls=50, waited_s=20 * PRIORITY_AGES_S) for _ in range(300)))
    newcomer = FakeJob(tenant="B")
    scheduler.add(newcomer)
    assert calls_until(scheduler, newcomer, most=2) <= 2


def test_tenants_share_evenly_however_many_jobs_they_have() -> None:
    scheduler = scheduler_with(
        *(FakeJob(tenant="A", calls=10_000) for _ in range(300)),
        *(FakeJob(tenant="B", calls=10_000) for _ in range(10)),
    )
    given = Counter(job.tenant for _ in range(50) for job in call(scheduler))
    assert abs(given["A"] - given["B"]) <= BUDGET, "within one call of each other"


def test_odd_sizes_are_no_way_around_fairness() -> None:
    """A tenant with jobs of many sizes gets no more work than one with jobs of one size."""
    spread = [
        FakeJob(tenant="A", side=side, strict=strict, calls=10_000) for side in (1, 2) for strict in (False, True)
    ]
    plain = [FakeJob(tenant="B", side=2, calls=10_000) for _ in range(10)]
    scheduler = scheduler_with(*spread, *plain)
    work: Counter[str] = Counter()
    for _ in range(200):
        for job in call(scheduler):
            work[job.tenant] += int(job.megapixels)
    assert 0.9 < work["A"] / work["B"] < 1.1


def test_who_asked_for_little_cannot_shut_others_out_later() -> None:
    light, heavy = FakeJob(tenant="light", calls=10_000), [FakeJob(tenant="heavy", calls=10_000) for _ in range(20)]
    scheduler = scheduler_with(light, *heavy)
    for _ in range(500):
        call(scheduler)
    for _ in range(100):
        scheduler.add(FakeJob(tenant="light", calls=10_000))
    alone = 0
    while all(job.tenant == "light" for job in call(scheduler)):
        alone += 1
    assert alone <= MAX_LEAD + 1


def test_higher_priority_goes_first_whatever_its_size() -> None:
    urgent = FakeJob(priority=1, side=3, calls=3)
    scheduler = scheduler_with(*(FakeJob(calls=100) for _ in range(20)), urgent)
    assert [call(scheduler) for _ in range(3)] == [[urgent]] * 3


def test_a_minute_of_waiting_makes_up_for_a_point_of_priority() -> None:
    patient = FakeJob(waited_s=2.5 * PRIORITY_AGES_S)
    impatient = FakeJob(waited_s=1.5 * PRIORITY_AGES_S, side=3)  # a size of its own, or it would ride along
    scheduler = scheduler_with(*(FakeJob(priority=2, calls=100, side=2) for _ in range(20)), patient, impatient)
    assert calls_until(scheduler, patient, most=3) <= 3
    assert not any(impatient in call(scheduler) for _ in range(5))


def test_who_has_begun_goes_on_before_the_next_begins() -> None:
    scheduler = scheduler_with(*(FakeJob(calls=10) for _ in range(20)))
    first = call(scheduler)
    assert all(call(scheduler) == first for _ in range(9))


def test_a_paused_job_is_passed_over_and_comes_back() -> None:
    one, two = FakeJob(calls=10), FakeJob(calls=10)
    scheduler = scheduler_with(one, two)
    call(scheduler)
    one.paused = True
    assert call(scheduler) == [two]
    two.paused = True
    assert call(scheduler) == []
    one.paused = two.paused = False
    assert call(scheduler) == [one, two]


def test_strict_jobs_run_alone_and_one_after_another() -> None:
    """If they took turns at every step, all hundred would end at the same late time."""
    strict = [FakeJob(strict=True, calls=3) for _ in range(3)]
    scheduler = scheduler_with(*strict)
    assert [call(scheduler) for _ in range(9)] == [[job] for job in strict for _ in range(3)]


def test_half_the_memory_is_half_the_batch_of_that_size_alone() -> None:
    scheduler = scheduler_with(
        *(FakeJob(calls=100) for _ in range(20)), *(FakeJob(side=2, calls=100) for _ in range(20))
    )
    small = next(batch for batch in iter(lambda: call(scheduler), []) if batch[0].side == 1)
    assert scheduler.halve_budget(small)
    sizes = {batch[0].side: len(batch) for batch in (call(scheduler) for _ in range(6))}
    assert sizes == {1: BUDGET / 2, 2: BUDGET / 4}
    assert not scheduler.halve_budget(small[:1]), "one job cannot be split"


def test_loras_of_one_call_are_bounded() -> None:
    """Each LoRA counts once, however many jobs use it; a job that is alone always fits."""

    def using(digest: str, size_bytes: int) -> FakeJob:
        return FakeJob(effects={"loras": SimpleNamespace(stacked_bytes=lambda: {digest: size_bytes})})

    jobs = [using(str(n), LORA_BYTES // 2) for n in (0, 0, 1, 2)]
    assert call(scheduler_with(*jobs)) == jobs[:3]
    heavy = using("x", 2 * LORA_BYTES)
    assert call(scheduler_with(heavy)) == [heavy]
