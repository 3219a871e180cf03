"""Reports job events to the log, the metrics and the traces, never with prompts."""

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
    """Receives committed changes from the queue (in any thread), and events from the worker."""

    def __init__(self, metrics: Metrics, keys: Keys, traces: Traces | None = None) -> None:
        self.metrics = metrics
        self.traces = traces
        self.keys = keys
        self.names: dict[str, str] = {"": "anyone"}
        """Names of keys, by id."""
        self.requests: OrderedDict[str, str] = OrderedDict()
        """By job: the id of its HTTP request, if this process received it."""
        self.stages = Stages()

    def on_change(self, change: Change) -> None:
        job, state, data = change.job, change.state, change.data
        labels = self.labels_of(job)
        code = data.get("code", "")
        self.metrics.on_change(state, labels, requeued="why" in data, code=code, compute_s=job.compute_s)
        if state == "queued" and (request_id := REQUEST_ID.get()):
            remember(self.requests, job.id, request_id)
        if self.traces:
            self.trace(self.traces, change, code)
        fields = {
            "job_id": job.id,
            "request_id": self.requests.get(job.id, ""),
            "state": state,
            "model": labels.model,
            "key": labels.key,
            "seconds": round(time.time() - job.created, 3),
            **{name: data[name] for name in ("code", "why", "attempt", "asset_id") if name in data},
        }
        log.log(logging.WARNING if state == "failed" else logging.INFO, "job %s", state, extra=fields)
        if state in ENDED:
            self.requests.pop(job.id, None)
            self.stages.forget(job.id)

    def trace(self, traces: Traces, change: Change, code: str) -> None:
        job = change.job
        match change.state:
            case "queued" if "why" not in change.data:
                traces.on_accepted(job.id)
            case "running":
                traces.record_stage(job.id, Stage(name="wait in line", began=job.created, ended=time.time()))
            case "queued":
                pass
            case state:
                traces.on_end(job.id, state, code=code)

    def on_event(self, job: JobRow, event: Event) -> None:
        stages = self.stages.ended_by(job.id, event)
        self.metrics.on_event(event, self.labels_of(job), waited_s=time.time() - job.created, stages=stages)
        if self.traces:
            for stage in stages:
                self.traces.record_stage(job.id, stage)

    def labels_of(self, job: JobRow) -> JobLabels:
        return JobLabels(model=job.spec.get("model") or job.spec.get("task", ""), key=self.name_of(job.tenant))

    def name_of(self, tenant: str) -> str:
        if tenant not in self.names:
            try:
                self.names |= {row.id: row.name for row in self.keys.list()}
            except StorageFailed:  # it is looked up again next time
                return tenant
        return self.names.setdefault(tenant, tenant)


def queue_state(queue: JobQueue) -> QueueState:
    counts = queue.counts()
    return QueueState(queued=counts["queued"], running=counts["running"], oldest_s=queue.oldest_s())


def device_memory() -> Mapping[str, int]:
    """Bytes reserved by torch on each CUDA device; empty before CUDA is initialised."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    return {f"cuda:{index}": torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count())}
