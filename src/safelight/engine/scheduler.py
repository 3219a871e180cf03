"""Chooses the jobs of the next network call.

Jobs of one call must agree in model and picture size (`key_of`); all else may differ. Of two jobs, first comes the one

- of higher priority; a minute of waiting counts for a point, up to the highest priority among those that are here;
- of the tenant that has had less work done, that of the call at hand included;
- of the key that has had less work done, so that an odd size never starves;
- that has begun; then the one that arrived first.

The first job decides the key; the call takes as many of that key as fit the budget, which is rows times picture area.
The first always fits. A job that is not chosen simply stays where it is: pausing is not being chosen.
"""

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import groupby

from safelight.engine.job import Job
from safelight.models.networks.load import Model

PRIORITY_AGES_S = 60.0
"""After this long a waiting job counts one priority higher."""
LORA_BYTES = 2**30
"""Most bytes of LoRAs in one call: their stacked copies take as much again."""
MAX_LEAD = 8.0
"""Most calls by which a tenant that was served less may be ahead."""


class Scheduler:
    def __init__(self, budget_megapixels: Callable[[Model], float]) -> None:
        self.jobs: list[Job] = []
        self.budget_megapixels = budget_megapixels
        self.budgets: dict[Hashable, float] = {}
        self.work_by_key = Account()
        self.work_by_tenant = Account()

    def add(self, job: Job) -> int:
        """Queue a job; returns how many are before it."""
        before = len(self.jobs)
        self.jobs.append(job)
        return before

    def remove(self, job: Job) -> None:
        if job in self.jobs:
            self.jobs.remove(job)
        self.work_by_tenant.keep_only(other.tenant for other in self.jobs)
        self.work_by_key.keep_only(key_of(other) for other in self.jobs)

    def next_batch(self) -> list[Job]:
        """The jobs of the next call, all of one key; empty when there is nothing to do."""
        ready = [job for job in self.jobs if not job.paused and job.state in ("waiting", "running")]
        if not ready:
            return []
        highest, now = max(job.priority for job in ready), time.monotonic()

        def place(job: Job) -> tuple[int, bool, float]:
            aged = job.priority + int((now - job.arrived) / PRIORITY_AGES_S)
            return -min(aged, highest), job.state == "waiting", job.arrived

        def place_as_first(job: Job) -> tuple[float, ...]:
            urgency, *rest = place(job)
            return urgency, self.work_by_tenant.of(job.tenant), self.work_by_key.of(key_of(job)), *rest

        first = min(ready, key=place_as_first)
        if first.strict:
            return [first]
        alike = sorted((job for job in ready if key_of(job) == key_of(first)), key=place)
        left = self.budget(first)
        stacked: dict[Hashable, int] = {}
        batch: list[Job] = []
        for _, equals in groupby(alike, key=lambda job: place(job)[0]):
            for job in self.in_turn(equals):
                left -= job.megapixels
                for active in job.effects.values():
                    stacked |= active.stacked_bytes()
                # Stop at the first that does not fit: passing over it would starve guided jobs behind unguided ones.
                if batch and (left < 0 or sum(stacked.values()) > LORA_BYTES):
                    return batch
                batch.append(job)
        return batch

    def in_turn(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Jobs in order within a tenant; the tenant with the least work goes next, work given here included."""
        lines: dict[str, deque[Job]] = {}
        for job in jobs:
            lines.setdefault(job.tenant, deque()).append(job)
        had = {tenant: self.work_by_tenant.of(tenant) for tenant in lines}
        while lines:
            tenant = min(lines, key=lambda name: (had[name], lines[name][0].state == "waiting", lines[name][0].arrived))
            job = lines[tenant].popleft()
            had[tenant] += job.megapixels
            if not lines[tenant]:
                del lines[tenant]
            yield job

    def charge(self, batch: Sequence[Job], costs: Sequence[float]) -> None:
        """Book a call's work to the tenants and the key it was done for."""
        for job, cost in zip(batch, costs, strict=True):
            self.work_by_tenant.book(job.tenant, cost)
        self.work_by_key.book(key_of(batch[0]), sum(costs))
        for account in (self.work_by_tenant, self.work_by_key):
            account.forgive(MAX_LEAD * sum(costs))

    def budget(self, job: Job) -> float:
        key = key_of(job)
        if key not in self.budgets:
            self.budgets[key] = self.budget_megapixels(job.model)
        return self.budgets[key]

    def halve_budget(self, batch: Sequence[Job]) -> bool:
        """After running out of memory; False when there is nothing left to halve."""
        first, asked = batch[0], sum(job.megapixels for job in batch)
        if len(batch) > 1:
            self.budgets[key_of(first)] = asked / 2
            return True
        if first.tiling is None:
            return False
        halved = min(asked, self.budget(first)) / 2
        if halved < asked / first.rows / first.num_tiles:
            return False  # one tile at a time is too much
        self.budgets[key_of(first)] = halved
        return True


class Account:
    """Work done so far by name. A newcomer starts level with the least served, not with a claim on the past."""

    def __init__(self) -> None:
        self.work: dict[Hashable, float] = {}

    def keep_only(self, present: Iterable[Hashable]) -> None:
        present = set(present)
        self.work = {name: work for name, work in self.work.items() if name in present}

    def of(self, name: Hashable) -> float:
        return self.work.setdefault(name, min(self.work.values(), default=0.0))

    def book(self, name: Hashable, amount: float) -> None:
        self.work[name] = self.of(name) + amount

    def forgive(self, lead: float) -> None:
        """Limit a tenant's credit to `lead`, or its burst of jobs would shut out the others."""
        least = max(self.work.values()) - lead
        self.work = {name: max(work, least) for name, work in self.work.items()}


def key_of(job: Job) -> Hashable:
    """What the jobs of one call must share; a strict job, moreover, has its calls to itself."""
    return job.model.digest, job.size, job.tiling, job.strict
