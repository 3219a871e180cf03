"""Facts become numbers, and names do not become a flood of them."""

import pytest
from PIL import Image

from safelight.errors import StorageFailed
from safelight.events import Decoded, Queued, Started, Stepped, Stored
from safelight.serving.monitoring.metrics import MAX_NAMES, JobLabels, Metrics, QueueState
from safelight.serving.monitoring.stages import Stages

JOE = JobLabels(model="mini", key="joe")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="1.2.3")


def test_the_events_of_a_job_are_counted_and_cut_into_stages(metrics: Metrics) -> None:
    now = 0.0
    stages = Stages(clock=lambda: now)
    story = [
        (1.0, Queued(job_id="e", position=0)),
        (3.0, Started(job_id="e", total_steps=2, waited_s=2.0)),
        (5.0, Stepped(job_id="e", step=1, total_steps=2, batch_rows=6)),
        (7.0, Stepped(job_id="e", step=2, total_steps=2, batch_rows=2)),
        (7.5, Decoded(job_id="e", image=Image.new("RGB", (8, 8)), compute_s=1.25)),
        (7.75, Stored(job_id="e", asset_id="a" * 64, path="", seconds=7.75)),
    ]
    for now, event in story:
        metrics.on_event(event, JOE, waited_s=now, stages=stages.ended_by("j", event))

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"safelight_{name}", labels)

    assert value("steps_total", model="mini", key="joe") == 2
    assert value("batch_rows_sum", model="mini") == 8
    assert value("wait_seconds_sum", key="joe") == 3
    spent = {
        name: value("stage_seconds_sum", stage=name, model="mini") for name in "encode denoise decode store".split()
    }
    assert spent == {"encode": 2, "denoise": 4, "decode": 0.5, "store": 0.25}
    assert not stages.marks, "what has ended is forgotten"


def test_changes_of_jobs_are_counted_by_how_they_end(metrics: Metrics) -> None:
    metrics.on_change("queued", JOE)
    metrics.on_change("running", JOE)
    metrics.on_change("queued", JOE, requeued=True)
    metrics.on_change("done", JOE, compute_s=1.25)
    metrics.on_change("cancelled", JOE, compute_s=0.5)
    metrics.on_change("failed", JOE, code="out_of_memory")
    page = metrics.page("")[0].decode()
    for line in (
        'safelight_jobs_accepted_total{key="joe",model="mini"} 1.0',
        'safelight_compute_seconds_total{key="joe",model="mini"} 1.75',
        'safelight_jobs_put_back_total{key="joe",model="mini"} 1.0',
        'safelight_jobs_ended_total{key="joe",model="mini",state="done"} 1.0',
        'safelight_jobs_ended_total{key="joe",model="mini",state="failed"} 1.0',
        'safelight_pictures_total{key="joe",model="mini"} 1.0',
        'safelight_failures_total{code="out_of_memory",key="joe",model="mini"} 1.0',
        'safelight_build_info{version="1.2.3"} 1.0',
    ):
        assert line in page.splitlines()


def test_labels_stay_few_whatever_callers_name(metrics: Metrics) -> None:
    for number in range(3 * MAX_NAMES):
        metrics.on_change("done", JobLabels(model=f"org/model-{number}", key="joe"))
        metrics.on_response(method=f"M{number}", route="unmatched", status=404, seconds=0.1, code=f"code-{number}")
    page = metrics.page("")[0].decode()
    assert page.count("\nsafelight_pictures_total{") == MAX_NAMES + 1
    assert page.count("\nsafelight_refusals_total{") == MAX_NAMES + 1
    assert f'safelight_pictures_total{{key="joe",model="other"}} {2 * MAX_NAMES}.0' in page
    assert page.count("\nsafelight_http_requests_total{") == 1


def test_the_line_is_read_at_each_scrape_and_its_loss_hides_nothing_else(metrics: Metrics) -> None:
    line = QueueState(queued=3, running=2, oldest_s=7.5)

    def read() -> QueueState:
        if line.queued < 0:
            raise StorageFailed("the database cannot be read")
        return line

    metrics.read_at_scrape(queue_state=read, device_memory=lambda: {"cuda:0": 2**30})
    page = metrics.page("")[0].decode()
    assert 'safelight_queue_jobs{state="queued"} 3.0' in page
    assert "safelight_queue_oldest_seconds 7.5" in page
    assert 'safelight_device_memory_bytes{device="cuda:0"} 1.073741824e+09' in page
    metrics.on_change("done", JOE, compute_s=1.25)
    metrics.on_change("cancelled", JOE, compute_s=0.5)
    line = QueueState(queued=-1, running=0, oldest_s=0)
    page = metrics.page("")[0].decode()
    assert "safelight_queue_readable 0.0" in page
    assert "safelight_queue_jobs{" not in page
    assert "safelight_pictures_total{" in page


def test_process_memory_is_exported(metrics: Metrics) -> None:
    resident = metrics.registry.get_sample_value("process_resident_memory_bytes")
    assert resident is not None, "Linux tells; elsewhere this metric is absent"
    assert resident > 2**20


def test_openmetrics_is_served_on_request(metrics: Metrics) -> None:
    page, content_type = metrics.page("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert page.endswith(b"# EOF\n")
