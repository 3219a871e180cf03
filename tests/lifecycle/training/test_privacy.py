"""Private training: no picture pulls too far, the noise is what was counted, the promise is written down."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tests.lifecycle.training.lessons import Checkpoints, finished, learn, recipe_for, write_pictures

from safelight.errors import InvalidRequest, UnsupportedOption
from safelight.lifecycle.training import privacy
from safelight.lifecycle.training.privacy import Privacy, add_cut, private_gradients
from safelight.lifecycle.training.recipe import PrivateRecipe


def test_one_picture_pulls_no_further_than_the_clip() -> None:
    totals = [torch.zeros(3), torch.zeros(2, 2), torch.zeros(1)]
    add_cut(totals, (torch.full((3,), 30.0), torch.full((2, 2), -40.0), None), clip=0.5)
    length = torch.cat([total.flatten() for total in totals]).norm()
    torch.testing.assert_close(length, torch.tensor(0.5))
    small = [torch.zeros(2)]
    add_cut(small, (torch.tensor([0.1, 0.2]),), clip=0.5)
    torch.testing.assert_close(small[0], torch.tensor([0.1, 0.2]))


def test_the_noise_is_as_strong_as_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no picture in the step, what is left is the noise."""

    class Nothing:
        own = range(4)

    param = torch.nn.Parameter(torch.zeros(100_000))
    never = Privacy(sigma=2.0, rate=0.5, clip=0.3, delta=1e-5)
    monkeypatch.setattr(privacy.random.SystemRandom, "random", lambda _self: 1.0)
    private_gradients(torch.nn.Identity(), [param], Nothing(), never, device=torch.device("cpu"))  # type: ignore[arg-type]
    assert param.grad is not None
    # sigma C over the expected number of pictures, 2; a hundred thousand draws settle it to half a percent.
    assert float(param.grad.std()) == pytest.approx(2.0 * 0.3 / 2, rel=0.01)
    assert float(param.grad.mean()) == pytest.approx(0, abs=0.005)


def test_noise_enough_for_the_promise_is_chosen_and_told(checkpoint: Checkpoints, tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    recipe = recipe_for(
        checkpoint("sd1"),
        write_pictures(tmp_path / "data", 6),
        steps=4,
        batch=3,
        dp=True,
        dp_epsilon=2.0,
        dp_delta=1e-3,
    )
    done = finished(learn(recipe, tmp_path / "home"))
    told = done.lineage["privacy"]
    assert 1.5 < told["epsilon"] <= 2.0
    with safe_open(done.path, "pt") as file:
        assert json.loads(file.metadata()["safelight.privacy"]) == told
    other = finished(learn(recipe, tmp_path / "again"))
    assert other.path.read_bytes() != done.path.read_bytes(), "the noise must not follow from the seed"


def test_a_new_word_can_be_private(checkpoint: Checkpoints, tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    data = write_pictures(tmp_path / "data", 6, captions=False)
    recipe = recipe_for(checkpoint("sd1"), data, "embedding", init="apple", steps=3, dp=True, dp_delta=1e-3)
    assert finished(learn(recipe, tmp_path / "home")).lineage["privacy"]["epsilon"] <= 8


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"batch": 50}, InvalidRequest, "take at most so many"),
        ({"dp_delta": 0.5}, InvalidRequest, "must be below 1 / 10"),
    ],
)
def test_promises_that_mean_nothing_are_refused(
    change: dict[str, float], error: type[Exception], why: str, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    recipe = recipe_for(checkpoint("sd1"), tmp_path, **{"dp": True} | change)
    assert isinstance(recipe, PrivateRecipe)
    with pytest.raises(error, match=why):
        privacy.privacy_for(recipe, 10, processes=1)
    with pytest.raises(UnsupportedOption, match="one device"):
        privacy.privacy_for(recipe, 10, processes=2)
    with pytest.raises(InvalidRequest, match="one by one"):
        recipe_for(checkpoint("sd1"), tmp_path, dp=True, accumulate=2)
