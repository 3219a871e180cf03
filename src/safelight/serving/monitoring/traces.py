"""One trace for each request, with the stages of its jobs.

    POST /v1/jobs
      accept         read, checked and committed
      wait in line   until a worker claims it
      encode  denoise  decode  store

OpenTelemetry's own instrumentation of the server makes the request's span. A job outlives its request, so this process
stores its context: stages that run in another process are not in the trace.
"""

import time
from collections import OrderedDict
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import StatusCode

from safelight.errors import InvalidRequest
from safelight.serving.monitoring.stages import Stage, remember

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXPORTER = "opentelemetry-exporter-otlp-proto-http"
NS = 1_000_000_000


def tracing_from(environment: Mapping[str, str], *, version: str) -> TracerProvider | None:
    """A provider that exports to the endpoint of OpenTelemetry's standard variables; None if they are not set.

    Raises:
        InvalidRequest: an endpoint is set, but the exporter package is missing.
    """
    named = next((name for name in ENDPOINTS if environment.get(name)), None)
    if named is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # pyright: ignore[reportMissingImports]
            OTLPSpanExporter,
        )
    except ModuleNotFoundError:
        raise InvalidRequest(f"{named} is set, but the exporter is missing: pip install {EXPORTER}") from None
    service = {"service.name": environment.get("OTEL_SERVICE_NAME", "safelight"), "service.version": version}
    provider = TracerProvider(resource=Resource.create(service))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Traces:
    def __init__(self, provider: TracerProvider) -> None:
        self.tracer = provider.get_tracer("safelight")
        self.contexts: OrderedDict[str, Context] = OrderedDict()
        """By job: the trace context of its request."""

    def on_accepted(self, job_id: str) -> None:
        """Store the job's context; called within the request."""
        context = get_current()
        remember(self.contexts, job_id, context)
        request = trace.get_current_span(context)
        now = time.time()
        began = request.start_time if isinstance(request, ReadableSpan) else None
        self.record_stage(job_id, Stage(name="accept", began=now if began is None else began / NS, ended=now))

    def record_stage(self, job_id: str, stage: Stage) -> None:
        """Record a finished stage of the job."""
        if job_id in self.contexts:
            span = self.tracer.start_span(
                stage.name,
                context=self.contexts[job_id],
                start_time=int(stage.began * NS),
                attributes={"safelight.job_id": job_id},
            )
            span.end(end_time=int(max(stage.began, stage.ended) * NS))

    def on_end(self, job_id: str, state: str, *, code: str = "") -> None:
        """Forget the job; if it did not end in a picture, record its state as a span."""
        context = self.contexts.pop(job_id, None)
        if context is not None and state != "done":
            span = self.tracer.start_span(state, context=context, attributes={"safelight.job_id": job_id})
            if state == "failed":
                span.set_attribute("error.type", code)
                span.set_status(StatusCode.ERROR, code)
            span.end()
