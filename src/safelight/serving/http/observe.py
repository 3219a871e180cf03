"""Tells the log, the metrics and the traces what happens to jobs. Prompts are told to none of them."""

import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping

from safelight.errors import StorageFailed
from safelight.events import Event
from safelight.serving.http.log import REQUEST_ID
from safelight.serving.jobs.keys import Keys
from safelight.serving.jobs.queue import Change, JobQueue
from safelight.serving.jobs.tables import ENDED, JobRow
from safelight.serving.monitoring.metrics import JobLabels, Metrics, QueueState
from safelight.serving.monitoring.stages import Stage, Stages, remember
from safelight.serving.monitoring.traces import Traces

log = logging.getLogger(__name__)


class Observer:
    """Hears of changes of jobs from the queue (in any thread), and of their events from the worker."""

    def __init__(self, metrics: Metrics, keys: Keys, traces: Traces | None = None) -> None:
        self.metrics = metrics
        self.traces = traces
        self.keys = keys
        self.names: dict[str, str] = {"": "anyone"}
        """Of keys, by id."""
        self.requests: OrderedDict[str, str] = OrderedDict()
        """By job: the id of the request that it came with, where it came to this process."""
        self.stages = Stages()

    def changed(self, change: Change) -> None:
        job, state, data = change.job, change.state, change.data
        about = self.about(job)
        code = data.get("code", "")
        self.metrics.changed(state, about, again="why" in data, code=code, compute_s=job.compute_s)
        if state == "queued" and (request_id := REQUEST_ID.get()):
            remember(self.requests, job.id, request_id)
        if self.traces:
            self.trace(self.traces, change, code)
        said = {
            "job_id": job.id,
            "request_id": self.requests.get(job.id, ""),
            "state": state,
            "model": about.model,
            "key": about.key,
            "seconds": round(time.time() - job.created, 3),
            **{name: data[name] for name in ("code", "why", "attempt", "asset_id") if name in data},
        }
        log.log(logging.WARNING if state == "failed" else logging.INFO, "job %s", state, extra=said)
        if state in ENDED:
            self.requests.pop(job.id, None)
            self.stages.forget(job.id)

    def trace(self, traces: Traces, change: Change, code: str) -> None:
        job = change.job
        match change.state:
            case "queued" if "why" not in change.data:
                traces.accepted(job.id)
            case "running":
                traces.passed(job.id, Stage(name="wait in line", began=job.created, ended=time.time()))
            case "queued":
                pass
            case state:
                traces.ended(job.id, state, code=code)

    def happened(self, job: JobRow, event: Event) -> None:
        stages = self.stages.ended_by(job.id, event)
        self.metrics.happened(event, self.about(job), waited_s=time.time() - job.created, stages=stages)
        if self.traces:
            for stage in stages:
                self.traces.passed(job.id, stage)

    def about(self, job: JobRow) -> JobLabels:
        return JobLabels(model=job.spec.get("model") or job.spec.get("task", ""), key=self.name_of(job.tenant))

    def name_of(self, tenant: str) -> str:
        if tenant not in self.names:
            try:
                self.names |= {row.id: row.name for row in self.keys.list()}
            except StorageFailed:  # it is asked again
                return tenant
        return self.names.setdefault(tenant, tenant)


def line_of(queue: JobQueue) -> QueueState:
    counts = queue.counts()
    return QueueState(queued=counts["queued"], running=counts["running"], oldest_s=queue.oldest_s())


def device_memory() -> Mapping[str, int]:
    """Bytes that torch holds on each CUDA device, once a network is there."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    return {f"cuda:{index}": torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count())}
