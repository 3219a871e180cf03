"""Prometheus' view of a server: facts about jobs and answers counted as they happen, the line read at each scrape.

Labels are few: models that were found, names of keys, templates of routes, codes of errors; of each at most
`MAX_NAMES`, and what comes later is `other`. Every process counts what it did itself; the line of jobs is read from
the database, so processes that share one report the same line.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from safelight.errors import SafelightError
from safelight.events import Event, Started, Stepped
from safelight.models.networks.memory import Memory
from safelight.serving.monitoring.stages import Stage

MAX_NAMES = 100
OTHER = "other"
SHORT_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
LONG_S = (0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """The line of jobs at this moment."""

    queued: int
    running: int
    oldest_s: float
    """How long the first in line has waited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLabels:
    """Whose job it is, and what draws it."""

    model: str
    key: str
    """The name of the API key."""


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self, *, version: str) -> None:
        disable_created_metrics()  # a third more series, which nobody asks for
        self.registry = CollectorRegistry()
        self.models, self.keys, self.routes, self.codes = LabelValues(), LabelValues(), LabelValues(), LabelValues()
        self.reader: WeightsCollector | None = None
        ProcessCollector(registry=self.registry)
        Info("safelight_build", "The version that runs.", registry=self.registry).info({"version": version})

        def count(name: str, help: str, *labels: str) -> Counter:  # noqa: A002  Prometheus' own word
            return Counter(f"safelight_{name}", help, labels, registry=self.registry)

        def spread(name: str, help: str, *labels: str, buckets: Sequence[float]) -> Histogram:  # noqa: A002
            return Histogram(f"safelight_{name}", help, labels, buckets=buckets, registry=self.registry)

        self.accepted = count("jobs_accepted_total", "Jobs accepted.", "model", "key")
        self.put_back = count("jobs_put_back_total", "Jobs put back in line to be tried again.", "model", "key")
        self.ended = count("jobs_ended_total", "Jobs ended, by how.", "state", "model", "key")
        self.pictures = count("pictures_total", "Pictures drawn and stored.", "model", "key")
        self.failures = count("failures_total", "Jobs that failed, by the error's code.", "code", "model", "key")
        self.refusals = count("refusals_total", "Requests refused, by the error's code.", "code", "key")
        self.steps = count("steps_total", "Denoising steps made.", "model", "key")
        self.compute_s = count("compute_seconds_total", "Network seconds spent on pictures.", "model", "key")
        self.wait_s = spread("wait_seconds", "From acceptance to the first network call.", "key", buckets=LONG_S)
        self.stage_s = spread("stage_seconds", "Time in each stage of a job.", "stage", "model", buckets=SHORT_S)
        self.rows = spread("batch_rows", "Network rows in the call that made a step.", "model", buckets=ROWS)
        self.requests = count("http_requests_total", "Requests answered.", "method", "route", "status")
        self.request_s = spread("http_request_seconds", "Until an answer began.", "method", "route", buckets=LONG_S)
        self.webhooks = count("webhooks_total", "Webhooks: sent, tried in vain, or given up.", "outcome")

    def read_at_scrape(
        self,
        *,
        line: Callable[[], QueueState],
        device_memory: Callable[[], Mapping[str, int]] = dict[str, int],
        weights: Memory | None = None,
    ) -> None:
        """Ask these at each scrape from now on; `device_memory` is bytes held by device."""
        if self.reader:
            self.registry.unregister(self.reader)  # of an application that was started before
        self.reader = WeightsCollector(line, device_memory, weights, self.models)
        self.registry.register(self.reader)

    def happened(self, event: Event, about: JobLabels, *, waited_s: float, stages: Sequence[Stage] = ()) -> None:
        """`waited_s` is the time since the job was accepted."""
        model, key = self.models[about.model], self.keys[about.key]
        match event:
            case Started():
                self.wait_s.labels(key).observe(waited_s)
            case Stepped(batch_rows=batch_rows):
                self.steps.labels(model, key).inc()
                self.rows.labels(model).observe(batch_rows)
            case _:
                pass
        for stage in stages:
            self.stage_s.labels(stage.name, model).observe(stage.seconds)

    def changed(
        self, state: str, about: JobLabels, *, again: bool = False, code: str = "", compute_s: float = 0.0
    ) -> None:
        """A job's state, as it was committed; `again` where it came back into line, `code` where it failed."""
        model, key = self.models[about.model], self.keys[about.key]
        match state:
            case "queued":
                (self.put_back if again else self.accepted).labels(model, key).inc()
            case "running":
                pass
            case _:
                self.ended.labels(state, model, key).inc()
                self.compute_s.labels(model, key).inc(compute_s)
        if state == "done":
            self.pictures.labels(model, key).inc()
        if state == "failed":
            self.failures.labels(self.codes[code], model, key).inc()

    def answered(self, *, method: str, route: str, status: int, seconds: float, code: str = "", key: str = "") -> None:
        """`code` is the error's, where the answer is one."""
        method = method if method in METHODS else OTHER
        route = self.routes[route]
        self.requests.labels(method, route, str(status)).inc()
        self.request_s.labels(method, route).observe(seconds)
        if code:
            self.refusals.labels(self.codes[code], self.keys[key]).inc()

    def delivered(self, outcome: str) -> None:
        """A webhook was tried: `sent`, `failed` (to be tried again) or `given up`."""
        self.webhooks.labels(outcome).inc()

    def page(self, accept: str) -> tuple[bytes, str]:
        """What a scraper that accepts this is given, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class LabelValues:
    """The values of a label: the first `MAX_NAMES` as they are."""

    def __init__(self) -> None:
        self.known: set[str] = set()

    def __getitem__(self, name: str) -> str:
        if name not in self.known:
            if len(self.known) >= MAX_NAMES:
                return OTHER
            self.known.add(name)
        return name


class WeightsCollector(Collector):
    def __init__(
        self,
        line: Callable[[], QueueState],
        device_memory: Callable[[], Mapping[str, int]],
        weights: Memory | None,
        models: LabelValues,
    ) -> None:
        self.line = line
        self.device_memory = device_memory
        self.weights = weights
        self.models = models

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("safelight_queue_jobs", "Jobs in line and under way.", labels=["state"])
        oldest = GaugeMetricFamily("safelight_queue_oldest_seconds", "How long the first in line has waited.")
        readable = GaugeMetricFamily("safelight_queue_readable", "1 where the database answered this scrape.")
        memory = GaugeMetricFamily("safelight_device_memory_bytes", "Memory held on a device.", labels=["device"])
        try:
            line = self.line()
        except SafelightError:
            # The rest is still worth seeing, now most of all.
            readable.add_metric([], 0)
        else:
            readable.add_metric([], 1)
            jobs.add_metric(["queued"], line.queued)
            jobs.add_metric(["running"], line.running)
            oldest.add_metric([], line.oldest_s)
        for device, size_bytes in self.device_memory().items():
            memory.add_metric([device], size_bytes)
        yield from (jobs, oldest, readable, memory)
        if self.weights:
            yield from self.collect_weights(self.weights)

    def collect_weights(self, weights: Memory) -> Iterator[Metric]:
        """What is in memory of models and LoRAs, and what has come and gone."""
        budget = GaugeMetricFamily("safelight_weights_budget_bytes", "What weights may take of the memory.")
        budget.add_metric([], weights.budget_bytes)
        held = weights.loaded()
        sizes = GaugeMetricFamily("safelight_weights_bytes", "Weights in memory.", labels=["kind", "state"])
        totals: defaultdict[tuple[str, str], int] = defaultdict(int)
        by_model: defaultdict[str, int] = defaultdict(int)
        for one in held:
            totals[one.kind, "used" if one.in_use else "idle"] += one.size_bytes
            if one.kind == "model":
                by_model[self.models[one.name]] += one.size_bytes
        for (kind, state), size in totals.items():
            sizes.add_metric([kind, state], size)
        models = GaugeMetricFamily("safelight_model_bytes", "Weights of each model in memory.", labels=["model"])
        for name, size in by_model.items():
            models.add_metric([name], size)
        loaded = CounterMetricFamily("safelight_weights_loaded", "Models and LoRAs loaded.", value=weights.num_loaded)
        dropped = CounterMetricFamily(
            "safelight_weights_dropped", "Models and LoRAs dropped from memory.", value=weights.num_dropped
        )
        yield from (budget, sizes, models, loaded, dropped)
