"""Chooses the jobs of the next network call.

Jobs of one call have the same model and picture size (`key_of`); all else may differ. Jobs are ordered by

1. priority, which rises by one per minute of waiting, up to the highest priority of any waiting job;
2. the work done for their tenant, least first, including the work already chosen for this call;
3. the work done for their key, least first, so that a rare size never starves;
4. whether they have started (those first), and their time of arrival.

The first job decides the key; the call takes as many jobs of that key as fit the budget (rows times picture area).
The first job always fits. Jobs that are not chosen wait without losing anything.
"""

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import groupby

from safelight.engine.job import Job
from safelight.models.networks.load import Model

PRIORITY_AGES_S = 60.0
"""Waiting time after which a job's priority rises by one."""
LORA_BYTES = 2**30
"""Largest total size of the LoRAs in one call; their stacked copies need the same amount again."""
MAX_LEAD = 8.0
"""Largest credit of a tenant that was served less than others, in calls."""


class Scheduler:
    def __init__(self, budget_megapixels: Callable[[Model], float]) -> None:
        self.jobs: list[Job] = []
        self.budget_megapixels = budget_megapixels
        self.budgets: dict[Hashable, float] = {}
        self.work_by_key = Account()
        self.work_by_tenant = Account()

    def add(self, job: Job) -> int:
        """Queue a job; returns the number of jobs before it."""
        before = len(self.jobs)
        self.jobs.append(job)
        return before

    def remove(self, job: Job) -> None:
        if job in self.jobs:
            self.jobs.remove(job)
        self.work_by_tenant.keep_only(other.tenant for other in self.jobs)
        self.work_by_key.keep_only(key_of(other) for other in self.jobs)

    def next_batch(self) -> list[Job]:
        """The jobs of the next call, all of one key; empty if there is nothing to do."""
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
                # Stop at the first job that does not fit: skipping it would starve jobs that need more rows.
                if batch and (left < 0 or sum(stacked.values()) > LORA_BYTES):
                    return batch
                batch.append(job)
        return batch

    def in_turn(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Jobs in order within a tenant; next comes the tenant with the least work, including work yielded here."""
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
        """Add a call's work to the accounts of its tenants and its key."""
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
        """Halve the budget after running out of memory; False if it cannot be halved further."""
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
    """Work done so far, by name. A new name starts with the work of the least served, so it has no credit."""

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
        """Limit each credit to `lead`: otherwise a burst of one tenant's jobs would shut out the others."""
        least = max(self.work.values()) - lead
        self.work = {name: max(work, least) for name, work in self.work.items()}


def key_of(job: Job) -> Hashable:
    """The properties that all jobs of one call share; a strict job, moreover, is always alone in its calls."""
    return job.model.digest, job.size, job.tiling, job.strict
