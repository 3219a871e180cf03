from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from safelight.models.backends import budget
from safelight.models.backends.budget import (
    MAX_ROWS,
    USUAL_ROWS,
    budget_for,
    measure,
    name_of,
    native_megapixels,
    read_budgets,
    remember,
)
from safelight.models.backends.eager import eager_denoiser
from safelight.models.networks.load import Model

Models = Callable[[str], Model]


def test_the_operator_goes_before_the_measurement_and_that_before_the_guess(model: Models, tmp_path: Path) -> None:
    measured, sd1 = tmp_path / "deep" / "budgets.json", model("sd1")
    assert budget_for(sd1, chosen=None, measured=measured) == USUAL_ROWS["cpu"] * native_megapixels(sd1)
    remember(measured, sd1, 3.5)
    remember(measured, model("sdxl"), 4.5)
    assert budget_for(sd1, chosen=None, measured=measured) == 3.5
    assert budget_for(sd1, chosen=1.0, measured=measured) == 1.0
    assert read_budgets(measured) == {name_of(sd1): 3.5, name_of(model("sdxl")): 4.5}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": "much"}', "null"])
def test_a_damaged_file_counts_as_none(model: Models, tmp_path: Path, content: str) -> None:
    measured = tmp_path / "budgets.json"
    measured.write_text(content)
    assert budget_for(model("sd1"), chosen=None, measured=measured) > 0
    remember(measured, model("sd1"), 2.0)
    assert list(read_budgets(measured).values()) == [2.0]


def clocked(monkeypatch: pytest.MonkeyPatch, seconds_for: Callable[[int], float]) -> None:
    """A machine whose calls take exactly so long: a real clock on a busy machine measures the neighbours."""
    monkeypatch.setattr(budget, "seconds_per_call", lambda _model, _denoiser, rows: seconds_for(rows))


@pytest.mark.parametrize(
    ("seconds_for", "rows"),
    [
        pytest.param(lambda rows: max(rows, 8), 8, id="free up to 8 rows"),
        pytest.param(lambda rows: rows, 1, id="no gain at all"),
        pytest.param(lambda rows: 1.0, MAX_ROWS, id="free"),
    ],
)
def test_the_batch_is_doubled_as_long_as_that_pays(
    model: Models, seconds_for: Callable[[int], float], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocked(monkeypatch, seconds_for)
    events_of: list[int] = []
    best = measure(model("sd1"), eager_denoiser(model("sd1")), report=lambda rows, _seconds: events_of.append(rows))
    assert best == rows * native_megapixels(model("sd1"))
    assert events_of == [2**i for i in range(len(events_of))]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_running_out_of_memory_ends_the_measurement(
    model: Models, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds_for(rows: int) -> float:
        if rows > 4:
            raise error
        return 1.0

    clocked(monkeypatch, seconds_for)
    best = measure(model("sd1"), eager_denoiser(model("sd1")), report=lambda *_: None)
    assert best == 4 * native_megapixels(model("sd1"))


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "inpaint", "lcm"])
def test_every_kind_of_network_can_be_measured(model: Models, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.models.backends.budget.MAX_ROWS", 1)
    assert measure(model(kind), eager_denoiser(model(kind)), report=lambda *_: None) == native_megapixels(model(kind))


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "lcm", "inpaint", "sd3", "flux"])
def test_every_kind_of_network_can_be_called_on_made_up_inputs(kind: str, model: Models) -> None:
    assert budget.seconds_per_call(model(kind), eager_denoiser(model(kind)), 2, repeats=0) > 0
