"""The dashboard and the alerts name metrics that exist, and the alerts say what they should."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safelight.serving.monitoring.metrics import Metrics, QueueState

DEPLOY = Path(__file__).parents[3] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "safelight.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"


def names_that_exist() -> dict[str, set[str]]:
    """Sample names, and the labels of each."""
    metrics = Metrics(version="0")
    metrics.read_at_scrape(
        queue_state=lambda: QueueState(queued=0, running=0, oldest_s=0), device_memory=lambda: {"cuda:0": 1}
    )
    page = metrics.page("")[0].decode()
    kinds = dict(line.split()[2:4] for line in page.splitlines() if line.startswith("# TYPE"))
    exist = {"up": {"job", "instance"}}
    for name, kind in kinds.items():
        labels = set(getattr(metrics.registry._names_to_collectors.get(name), "_labelnames", ()))
        sampled = set(re.findall(r"(\w+)=", " ".join(re.findall(rf"^{name}{{(.*?)}}", page, re.MULTILINE))))
        for suffix in ("_bucket", "_count", "_sum") if kind == "histogram" else ("",):
            exist[name + suffix] = labels | sampled | {"le", "job", "instance"}
    return exist


def expressions(node: Any) -> Iterator[str]:
    match node:
        case dict():
            for name, value in node.items():
                if name in ("expr", "definition") and isinstance(value, str):
                    yield value
                else:
                    yield from expressions(value)
        case list():
            for value in node:
                yield from expressions(value)
        case _:
            pass


def all_expressions() -> list[str]:
    alerts = re.findall(r"^ +expr: (.+)$", ALERTS.read_text(), re.MULTILINE)
    return [*expressions(json.loads(DASHBOARD.read_text())), *alerts]


def test_every_metric_and_label_that_is_named_exists() -> None:
    exist = names_that_exist()
    exprs = all_expressions()
    assert len(exprs) > 25
    for expr in exprs:
        named = re.findall(r"\b((?:safelight|process)_\w+|up\b)(?:{(.*?)})?", expr)
        assert named, expr
        for name, selectors in named:
            assert name in exist, f"{name} in {expr}"
            assert set(re.findall(r"(\w+)=", selectors)) <= exist[name], expr
        of_all = set.union(*(exist[name] for name, _ in named))
        for grouping in re.findall(r"by \(([^)]*)\)", expr):
            assert {label.strip() for label in grouping.split(",")} <= of_all, expr


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = " ".join(expressions(json.loads(DASHBOARD.read_text())))
    ours = {re.sub("_(bucket|count|sum)$", "", name) for name in names_that_exist() if name.startswith("safelight")}
    # For alerts only: whether the database answered.
    assert {name for name in ours if name not in shown} == {"safelight_queue_readable"}


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in dashboard["panels"])


@pytest.mark.needs("promtool")
@pytest.mark.parametrize(
    "words", ["check rules alerts.yml", "test rules alerts_test.yml", "check config prometheus.yml"]
)
def test_promtool_agrees(words: str) -> None:
    done = subprocess.run(["promtool", *words.split()], cwd=ALERTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
