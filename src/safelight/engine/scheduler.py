"""Who takes part in the next network call.

Jobs of one call must agree in model and picture size (`key`); all else may differ. Three rules, in this order:

- between keys, the one that has had the least work done goes next, so an odd size never starves;
- within a key, higher priority first (waiting counts for a minute a point), then jobs already begun, then the
  tenant that has had the least work done, then arrival;
- as many as fit the budget, which is rows times picture area; the first always fits.

A job that is not chosen simply stays where it is: pausing is not being chosen.
"""

import time
from collections.abc import Callable, Hashable

from safelight.engine.job import Job
from safelight.models.load import Model

PRIORITY_AGES_S = 60.0
"""After this long a waiting job counts one priority higher."""
SMALLEST_BUDGET = 1e-9


class Scheduler:
    def __init__(self, budget_megapixels: Callable[[Model], float]) -> None:
        self.jobs: list[Job] = []
        self.measured_budget = budget_megapixels
        self.shrunk: dict[Hashable, float] = {}
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
        self.work_by_tenant.keep_only({other.tenant for other in self.jobs})
        self.work_by_key.keep_only({key_of(other) for other in self.jobs})

    def next_batch(self) -> list[Job]:
        """The jobs of the next call, all of one key; empty when there is nothing to do."""
        ready = [job for job in self.jobs if not job.paused and job.state in ("waiting", "running")]
        if not ready:
            return []
        key = min((key_of(job) for job in ready), key=self.work_by_key.of)
        queue = sorted((job for job in ready if key_of(job) == key), key=self.order)
        if queue[0].strict:
            return queue[:1]
        budget = self.budget(queue[0])
        batch: list[Job] = []
        for job in queue:
            budget -= job.megapixels
            # Stop at the first that does not fit: passing over it would starve guided jobs behind unguided ones.
            if batch and budget < 0:
                break
            batch.append(job)
        return batch

    def order(self, job: Job) -> tuple[float, bool, float, float]:
        age = (time.monotonic() - job.arrived) / PRIORITY_AGES_S
        return (-(job.priority + int(age)), job.state == "waiting", self.work_by_tenant.of(job.tenant), job.arrived)

    def charge(self, job: Job, megapixels: float) -> None:
        """Book a call's work to the tenant and the key it was done for."""
        self.work_by_tenant.book(job.tenant, megapixels)
        self.work_by_key.book(key_of(job), megapixels)

    def budget(self, job: Job) -> float:
        return self.shrunk.get(key_of(job), self.measured_budget(job.model))

    def halve_budget(self, batch: list[Job]) -> bool:
        """After running out of memory; False when there is nothing left to halve."""
        if len(batch) < 2:
            return False
        self.shrunk[key_of(batch[0])] = max(sum(job.megapixels for job in batch) / 2, SMALLEST_BUDGET)
        return True


class Account:
    """Work done so far by name. A newcomer starts level with the least served, not with a claim on the past."""

    def __init__(self) -> None:
        self.work: dict[Hashable, float] = {}

    def keep_only(self, present: set[Hashable]) -> None:
        self.work = {name: work for name, work in self.work.items() if name in present}

    def of(self, name: Hashable) -> float:
        return self.work.setdefault(name, min(self.work.values(), default=0.0))

    def book(self, name: Hashable, amount: float) -> None:
        self.work[name] = self.of(name) + amount


def key_of(job: Job) -> Hashable:
    """What the jobs of one call must share; a strict job shares its calls with nobody."""
    return (job.model.digest, job.size, job.id if job.strict else None)
