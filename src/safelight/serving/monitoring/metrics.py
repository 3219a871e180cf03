"""Prometheus metrics: jobs and answers are counted as they happen, the queue is read at each scrape.

Label values are few: names of models and keys, templates of routes, codes of errors; of each at most `MAX_NAMES`, and
later ones are `other`. Every process counts its own work; the queue is read from the database, so processes that share
one report the same queue.
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
from safelight.events import Event, Started, Stepped, Stored
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
    """The job queue at this moment."""

    queued: int
    running: int
    oldest_s: float
    """Seconds that the oldest queued job has waited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLabels:
    """The labels of a job's metrics."""

    model: str
    key: str
    """The name of the API key."""


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self, *, version: str) -> None:
        disable_created_metrics()  # they would add a third more series, which nobody uses
        self.registry = CollectorRegistry()
        self.models, self.keys, self.routes, self.codes = LabelValues(), LabelValues(), LabelValues(), LabelValues()
        self.reader: WeightsCollector | None = None
        ProcessCollector(registry=self.registry)
        Info("safelight_build", "The running version.", registry=self.registry).info({"version": version})

        def counter(name: str, help: str, *labels: str) -> Counter:  # noqa: A002  Prometheus' own word
            return Counter(f"safelight_{name}", help, labels, registry=self.registry)

        def histogram(name: str, help: str, *labels: str, buckets: Sequence[float]) -> Histogram:  # noqa: A002
            return Histogram(f"safelight_{name}", help, labels, buckets=buckets, registry=self.registry)

        self.accepted = counter("jobs_accepted_total", "Jobs accepted.", "model", "key")
        self.put_back = counter("jobs_put_back_total", "Jobs requeued for another attempt.", "model", "key")
        self.ended = counter("jobs_ended_total", "Jobs ended, by final state.", "state", "model", "key")
        self.pictures = counter("pictures_total", "Pictures drawn and stored.", "model", "key")
        self.failures = counter("failures_total", "Jobs that failed, by the error's code.", "code", "model", "key")
        self.refusals = counter("refusals_total", "Requests refused, by the error's code.", "code", "key")
        self.marks = counter("marks_total", "Marks of pictures, by layer and what became of them.", "layer", "outcome")
        self.steps = counter("steps_total", "Denoising steps made.", "model", "key")
        self.compute_s = counter("compute_seconds_total", "Network seconds spent on pictures.", "model", "key")
        self.wait_s = histogram("wait_seconds", "From acceptance to the first network call.", "key", buckets=LONG_S)
        self.stage_s = histogram("stage_seconds", "Time in each stage of a job.", "stage", "model", buckets=SHORT_S)
        self.rows = histogram("batch_rows", "Network rows in the call that made a step.", "model", buckets=ROWS)
        self.requests = counter("http_requests_total", "Requests answered.", "method", "route", "status")
        self.request_s = histogram(
            "http_request_seconds", "From the request to the start of the answer.", "method", "route", buckets=LONG_S
        )
        self.webhooks = counter("webhooks_total", "Webhook tries, by outcome: sent, failed or given up.", "outcome")

    def read_at_scrape(
        self,
        *,
        queue_state: Callable[[], QueueState],
        device_memory: Callable[[], Mapping[str, int]] = dict[str, int],
        weights: Memory | None = None,
    ) -> None:
        """Read these at each scrape from now on; `device_memory` returns bytes held by device."""
        if self.reader:
            self.registry.unregister(self.reader)  # of an application started earlier
        self.reader = WeightsCollector(queue_state, device_memory, weights, self.models)
        self.registry.register(self.reader)

    def on_event(self, event: Event, labels: JobLabels, *, waited_s: float, stages: Sequence[Stage] = ()) -> None:
        """Count an event of a job; `waited_s` is the time since it was accepted."""
        model, key = self.models[labels.model], self.keys[labels.key]
        match event:
            case Started():
                self.wait_s.labels(key).observe(waited_s)
            case Stepped(batch_rows=batch_rows):
                self.steps.labels(model, key).inc()
                self.rows.labels(model).observe(batch_rows)
            case Stored(marks=marks):
                for layer, outcome in marks.items():
                    self.marks.labels(layer, outcome).inc()
            case _:
                pass
        for stage in stages:
            self.stage_s.labels(stage.name, model).observe(stage.seconds)

    def on_change(
        self, state: str, labels: JobLabels, *, requeued: bool = False, code: str = "", compute_s: float = 0.0
    ) -> None:
        """Count a committed change of state; `requeued`: back to the queue, `code`: of its error if it failed."""
        model, key = self.models[labels.model], self.keys[labels.key]
        match state:
            case "queued":
                (self.put_back if requeued else self.accepted).labels(model, key).inc()
            case "running":
                pass
            case _:
                self.ended.labels(state, model, key).inc()
                self.compute_s.labels(model, key).inc(compute_s)
        if state == "done":
            self.pictures.labels(model, key).inc()
        if state == "failed":
            self.failures.labels(self.codes[code], model, key).inc()

    def on_response(
        self, *, method: str, route: str, status: int, seconds: float, code: str = "", key: str = ""
    ) -> None:
        """Count an answered request; `code` is that of the error, if the answer is one."""
        method = method if method in METHODS else OTHER
        route = self.routes[route]
        self.requests.labels(method, route, str(status)).inc()
        self.request_s.labels(method, route).observe(seconds)
        if code:
            self.refusals.labels(self.codes[code], self.keys[key]).inc()

    def on_webhook(self, outcome: str) -> None:
        """Count a webhook try: `sent`, `failed` (to be tried again) or `given up`."""
        self.webhooks.labels(outcome).inc()

    def page(self, accept: str) -> tuple[bytes, str]:
        """The metrics page in a format that the scraper accepts, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class LabelValues:
    """The values of a label: the first `MAX_NAMES` unchanged, later ones as `other`."""

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
        queue_state: Callable[[], QueueState],
        device_memory: Callable[[], Mapping[str, int]],
        weights: Memory | None,
        models: LabelValues,
    ) -> None:
        self.queue_state = queue_state
        self.device_memory = device_memory
        self.weights = weights
        self.models = models

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("safelight_queue_jobs", "Queued and running jobs.", labels=["state"])
        oldest = GaugeMetricFamily("safelight_queue_oldest_seconds", "Seconds that the oldest queued job has waited.")
        readable = GaugeMetricFamily("safelight_queue_readable", "1 if the database answered this scrape.")
        memory = GaugeMetricFamily("safelight_device_memory_bytes", "Memory held on a device.", labels=["device"])
        try:
            queue_state = self.queue_state()
        except SafelightError:
            # The other metrics are still useful, especially during an outage.
            readable.add_metric([], 0)
        else:
            readable.add_metric([], 1)
            jobs.add_metric(["queued"], queue_state.queued)
            jobs.add_metric(["running"], queue_state.running)
            oldest.add_metric([], queue_state.oldest_s)
        for device, size_bytes in self.device_memory().items():
            memory.add_metric([device], size_bytes)
        yield from (jobs, oldest, readable, memory)
        if self.weights:
            yield from self.collect_weights(self.weights)

    def collect_weights(self, weights: Memory) -> Iterator[Metric]:
        """Metrics of the models and LoRAs in memory, and of those loaded and dropped."""
        budget = GaugeMetricFamily("safelight_weights_budget_bytes", "Memory budget of weights.")
        budget.add_metric([], weights.budget_bytes)
        held = weights.loaded()
        sizes = GaugeMetricFamily("safelight_weights_bytes", "Weights in memory.", labels=["kind", "state"])
        totals: defaultdict[tuple[str, str], int] = defaultdict(int)
        by_model: defaultdict[str, int] = defaultdict(int)
        for weights_entry in held:
            totals[weights_entry.kind, "used" if weights_entry.in_use else "idle"] += weights_entry.size_bytes
            if weights_entry.kind == "model":
                by_model[self.models[weights_entry.name]] += weights_entry.size_bytes
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
