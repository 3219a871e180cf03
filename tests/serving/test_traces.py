"""One trace for each request, through every stage of its job."""

import os
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.serving.conftest import ended, serving, settings_in

from safelight.errors import InvalidRequest
from safelight.serving.monitoring.traces import tracing_from

SMALL = {"prompt": "a red apple", "seed": 7, "steps": 2, "width": 64, "height": 64}
STAGES = ["accept", "wait in line", "encode", "denoise", "decode", "store"]
TRACEPARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


def test_a_request_is_followed_through_its_stages(tmp_path: Path) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with serving(settings_in(tmp_path), tracing=provider) as url, httpx.Client(base_url=url) as client:
        job = client.post("/v1/jobs", json=SMALL, headers={"traceparent": TRACEPARENT}).json()
        ended(client, job["id"])
        stopped = client.post("/v1/jobs", json=SMALL | {"steps": 1000}).json()
        client.post(f"/v1/jobs/{stopped['id']}/cancel").raise_for_status()
        client.get("/healthz").raise_for_status()
    spans = exporter.get_finished_spans()
    [request] = [span for span in spans if span.parent and span.parent.span_id == int("cd" * 8, 16)]
    assert request.name == "POST /v1/jobs"
    mine = [span for span in spans if span.parent and span.parent.span_id == request.context.span_id]
    assert [span.name for span in sorted(mine, key=lambda span: span.start_time or 0)] == STAGES
    assert {span.context.trace_id for span in mine} == {int("ab" * 16, 16)}
    assert {(span.attributes or {})["safelight.job_id"] for span in mine} == {job["id"]}
    assert all((span.end_time or 0) >= (span.start_time or 0) for span in mine)
    assert [span for span in spans if span.name == "cancelled"]
    assert not [span for span in spans if "healthz" in span.name]
    assert "red apple" not in str([span.to_json() for span in spans])


def test_traces_are_sent_only_if_the_environment_names_an_endpoint() -> None:
    assert tracing_from({"PATH": os.environ["PATH"]}, version="1") is None
    with pytest.raises(InvalidRequest, match="pip install opentelemetry-exporter-otlp-proto-http"):
        tracing_from({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, version="1")
