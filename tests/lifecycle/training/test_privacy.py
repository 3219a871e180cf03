"""Private training: gradients are clipped, the noise is as accounted, the guarantee is recorded."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from tests.lifecycle.training.lessons import Checkpoints, finished, learn, recipe_for, write_pictures
from torch import Tensor

from safelight.cli.tune import finished as ending_of
from safelight.errors import InvalidRequest, UnsupportedOption
from safelight.lifecycle.training import loop, privacy
from safelight.lifecycle.training.events import Saved, Updated
from safelight.lifecycle.training.privacy import Privacy, add_cut, chosen, private_gradients, require_private
from safelight.lifecycle.training.recipe import PrivateRecipe
from safelight.lifecycle.training.train import train
from safelight.models.registry.registry import open_registry
from safelight.settings import Settings

CPU = torch.device("cpu")
GRID = 2.0**-21
"""Of a clip of 0.5."""


class Four:
    """A data set of four pictures, as far as noise is concerned."""

    own = range(4)


def whole(totals: list[Tensor]) -> Tensor:
    return torch.cat([total.flatten() for total in totals]).double() * GRID


def zeros(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.zeros(shape, dtype=torch.int64) for shape in shapes]


def test_the_gradient_of_a_picture_is_clipped() -> None:
    totals = zeros((3,), (2, 2), (1,))
    add_cut(totals, (torch.full((3,), 30.0), torch.full((2, 2), -40.0), None), clip=0.5, grid=GRID)
    assert 0.49999 < float(whole(totals).norm()) <= 0.5
    small = zeros((2,))
    add_cut(small, (torch.tensor([0.1, 0.2]),), clip=0.5, grid=GRID)
    torch.testing.assert_close(whole(small), torch.tensor([0.1, 0.2]).double(), atol=GRID / 2, rtol=0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 2000), st.floats(-30, 30), st.floats(-12, 12))
@settings(deadline=None, max_examples=60)
def test_rounding_never_exceeds_the_clipping_norm(seed: int, size: int, scale: float, clip_bits: float) -> None:
    """In whole numbers, so that the test rounds nothing itself."""
    clip = 2.0**clip_bits
    grid = Privacy(sigma=1, rate=1, clip=clip, delta=0.1).grid
    gradient = torch.from_numpy(np.random.default_rng(seed).normal(0, 2.0**scale, size)).float()
    [total] = totals = zeros((size,))
    add_cut(totals, (gradient,), clip=clip, grid=grid)
    assert sum(number**2 for number in total.tolist()) <= (clip / grid) ** 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_adds_nothing(bad: float) -> None:
    totals = zeros((2,), (2,))
    add_cut(totals, (torch.tensor([1.0, bad]), torch.ones(2)), clip=0.5, grid=GRID)
    assert not any(total.any() for total in totals)


def test_the_sum_does_not_depend_on_the_order_of_pictures() -> None:
    """Sums of floats differ in their last bits, which tell what was added to what; sums on the grid do not."""
    pictures = [torch.from_numpy(np.random.default_rng(number).normal(size=50)).float() for number in range(20)]
    sums = []
    for order in (pictures, pictures[::-1]):
        [total] = totals = zeros((50,))
        for picture in order:
            add_cut(totals, (picture,), clip=0.5, grid=GRID)
        sums.append(total.clone())
    assert torch.equal(*sums)


def noise_alone(sigma: float = 2.0, clip: float = 0.3, size: int = 100_000) -> Tensor:
    param = torch.nn.Parameter(torch.zeros(size))
    never = Privacy(sigma=sigma, rate=0.5, clip=clip, delta=1e-5)
    loss = private_gradients(torch.nn.Identity(), [param], Four(), never, device=CPU)  # type: ignore[arg-type]
    assert loss is None
    assert param.grad is not None
    return param.grad


@pytest.fixture
def no_picture_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "poisson_sample", lambda *_: [])


@pytest.mark.usefixtures("no_picture_sampled")
def test_the_noise_has_the_accounted_deviation() -> None:
    """With no picture in the step, what is left is the noise: sigma C over the expected number of pictures, 2."""
    noise = noise_alone().double() / (2.0 * 0.3 / 2)
    count = len(noise)
    # Five deviations of each, and Kolmogorov-Smirnov's 2.7: by chance less than once in a million runs.
    assert abs(float(noise.mean())) < 5 / math.sqrt(count)
    assert abs(float(noise.std()) - 1) < 5 / math.sqrt(2 * count)
    true = torch.special.ndtr(noise.sort().values)
    assert float((true - (torch.arange(count) + 0.5) / count).abs().max()) < 2.7 / math.sqrt(count)


@pytest.mark.usefixtures("no_picture_sampled")
def test_seeds_do_not_affect_the_noise() -> None:
    """Neither torch's, nor Python's, nor numpy's."""
    draws = []
    for _ in range(2):
        torch.manual_seed(7)
        privacy.random.seed(7)
        np.random.seed(7)
        draws.append(noise_alone(size=1000))
    assert not torch.isclose(*draws, rtol=1e-6, atol=0).any()


@pytest.mark.usefixtures("no_picture_sampled")
def test_the_noise_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it: with a system that always says the same, it is always the same, and 64 bits go into each number."""
    asked: list[int] = []
    monkeypatch.setattr(os, "urandom", lambda size: asked.append(size) or bytes(i * 37 % 256 for i in range(size)))
    assert torch.equal(noise_alone(size=500), noise_alone(size=500))
    assert sum(asked) >= 2 * 500 * 8


@pytest.mark.usefixtures("no_picture_sampled")
def test_the_noise_lies_on_the_grid() -> None:
    privately = Privacy(sigma=2.0, rate=0.5, clip=0.3, delta=1e-5)
    steps = noise_alone().double() * 2 / privately.grid
    # The parameters are float32, whose 24 bits are the only thing between these and whole numbers.
    assert ((steps - steps.round()).abs() <= steps.abs() * 2.0**-24 + 1e-9).all()
    assert privately.grid <= privately.clip * 2.0**-20


def test_the_history_counts_steps_by_their_noise() -> None:
    one = Privacy(sigma=1.0, rate=0.1, clip=1.0, delta=1e-5)
    other = Privacy(sigma=2.0, rate=0.1, clip=1.0, delta=1e-5)
    spent: list[tuple[float, float, int]] = []
    for kind in (one, one, other, one):
        spent = kind.spend(spent)
    assert spent == [(1.0, 0.1, 2), (2.0, 0.1, 1), (1.0, 0.1, 1)]


def test_each_picture_is_sampled_independently() -> None:
    """As the accountants suppose; a batch of fixed size is something else. Five deviations either side."""
    pictures: Any = range(50)
    sizes, mean, variance = [], 50 * 0.3, 50 * 0.3 * 0.7
    for _ in range(1000):
        privacy.random.seed(7)
        sizes.append(len(chosen(pictures, 0.3)))
    assert abs(np.mean(sizes) - mean) < 5 * math.sqrt(variance / 1000)
    assert abs(np.var(sizes) / variance - 1) < 5 * math.sqrt(2 / 1000)
    assert chosen(pictures, 1.0) == list(pictures)
    assert chosen(pictures, 0.0) == []


DP = {"dp": True, "dp_delta": 1e-3}
NEEDS_OPACUS = pytest.mark.needs("opacus")


@NEEDS_OPACUS
def test_the_noise_meets_the_guarantee_and_is_recorded(checkpoint: Checkpoints, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 8)
    recipe = recipe_for(checkpoint("sd1"), data, steps=4, batch=2, dp_epsilon=2.0, **DP)
    done = finished(learn(recipe, tmp_path / "home"))
    told = done.lineage["privacy"]
    assert told["accountant"] == "prv"
    assert 1.5 < told["epsilon"] < told["epsilon_rdp"] <= 2.0
    assert (told["steps"], told["sample_rate"], told["delta"]) == (4, 0.25, 1e-3)
    with safe_open(done.path, "pt") as file:
        assert json.loads(file.metadata()["safelight.privacy"]) == told
    ending = "\n".join(ending_of(done))
    assert f"epsilon {told['epsilon']:.2f} at delta 0.001 by prv, {told['epsilon_rdp']:.2f} by rdp" in ending


@NEEDS_OPACUS
def test_the_same_recipe_draws_new_noise_and_gives_the_same_guarantee(checkpoint: Checkpoints, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 4)
    recipe = recipe_for(checkpoint("sd1"), data, steps=1, batch=4, seed=3, **DP)
    one, other = (finished(learn(recipe, tmp_path / name)) for name in ("one", "other"))
    assert one.lineage["privacy"] == other.lineage["privacy"]
    files = load_file(one.path), load_file(other.path)
    learnt = [name for name in files[0] if name.endswith("lora_up.weight")]
    assert not any(torch.equal(files[0][name], files[1][name]) for name in learnt)


@NEEDS_OPACUS
def test_published_results_do_not_identify_their_pictures(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """A digest of the pictures tells whoever can guess them; the time tells how many were chosen."""
    data = write_pictures(tmp_path / "data", 4)
    recipe = recipe_for(checkpoint("sd1"), data, steps=2, batch=4, **DP)
    done = finished(learn(recipe, tmp_path / "home"))
    digest = json.loads((tmp_path / "home/runs/learnt/report.json").read_text())["digest"]
    for path in (done.path, *(tmp_path / "home/runs/learnt").glob("*.safetensors")):
        if path.name != "latents.safetensors":
            assert digest.encode() not in path.read_bytes()
    with open_registry(Settings(home=tmp_path / "home", device="cpu")) as registry:
        version = registry.resolve("learnt")
    assert digest not in repr(version)
    assert version.lineage.metrics["losses"] == []
    assert version.lineage.metrics["seconds"] is None
    assert version.lineage.metrics["privacy"] == done.lineage["privacy"]


@pytest.fixture
def noises(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, ...]]:
    """What was drawn for each parameter, in this process."""
    drawn: list[tuple[float, ...]] = []
    system = privacy.secret_gaussians

    def draw(count: int) -> Tensor:
        noise = system(count)
        drawn.append(tuple(noise.tolist()))
        return noise

    monkeypatch.setattr(privacy, "secret_gaussians", draw)
    return drawn


@NEEDS_OPACUS
def test_a_resumed_run_draws_new_noise_and_counts_all_its_steps(
    checkpoint: Checkpoints, noises: list[tuple[float, ...]], tmp_path: Path
) -> None:
    data = write_pictures(tmp_path / "data", 4)
    recipe = recipe_for(checkpoint("sd1"), data, steps=3, batch=4, save_every=1, **DP)
    running = train(recipe, Settings(home=tmp_path, device="cpu"))
    for item in running:
        if isinstance(item, Saved):
            break
    next(running)  # a second step, which is lost
    saved = (tmp_path / "runs/learnt/state.pt").read_bytes()
    running.close()
    (tmp_path / "runs/learnt/state.pt").write_bytes(saved)
    news = learn(recipe, tmp_path)
    assert [item.step for item in news if isinstance(item, Updated)] == [2, 3]
    assert len(set(noises)) == len(noises), "no noise is drawn twice"
    assert finished(news).lineage["privacy"]["steps"] == 3


@NEEDS_OPACUS
def test_a_run_with_noise_of_32_bits_is_not_resumed(checkpoint: Checkpoints, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 4)
    recipe = recipe_for(checkpoint("sd1"), data, steps=2, batch=4, **DP)
    learn(recipe, tmp_path)
    state = tmp_path / "runs/learnt/state.pt"
    old = torch.load(state, weights_only=True)
    del old["spent"]
    torch.save(old, state)
    with pytest.raises(InvalidRequest, match="only 32 secret bits; start a new run"):
        learn(recipe, tmp_path)


@NEEDS_OPACUS
@pytest.mark.parametrize("bad", ["empty", "nan"])
def test_no_picture_stops_a_private_run(
    bad: str, checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """That it stopped, or that it had no picture, would tell of the pictures; it is a step of noise alone."""
    if bad == "empty":
        monkeypatch.setattr(privacy, "poisson_sample", lambda *_: [])
    else:
        monkeypatch.setattr(
            loop.Learner, "errors", lambda self, batch: batch.latents.sum() * params_of(self) * math.nan
        )
    data = write_pictures(tmp_path / "data", 4)
    news = learn(recipe_for(checkpoint("sd1"), data, steps=2, batch=4, **DP), tmp_path)
    assert [item.loss for item in news if isinstance(item, Updated)] == [0.0, 0.0]
    assert finished(news).lineage["privacy"]["steps"] == 2
    weights = load_file(finished(news).path).values()
    assert all(weight.isfinite().all() for weight in weights)


def params_of(learner: loop.Learner) -> Tensor:
    return sum((param.sum() for param in learner.unet.parameters() if param.requires_grad), torch.zeros(()))


@NEEDS_OPACUS
def test_a_new_word_can_be_private(checkpoint: Checkpoints, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 4, captions=False)
    recipe = recipe_for(checkpoint("sd1"), data, "embedding", init="apple", steps=3, batch=4, **DP)
    told = finished(learn(recipe, tmp_path / "home")).lineage["privacy"]
    assert told["epsilon"] < told["epsilon_rdp"] <= 8


@pytest.mark.parametrize(
    ("change", "why"), [({"batch": 50}, "at most the number of pictures"), ({"dp_delta": 0.5}, "must be below 1 / 10")]
)
def test_meaningless_privacy_parameters_are_refused(change: dict[str, float], why: str, tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, tmp_path, **{"dp": True} | change)
    assert isinstance(recipe, PrivateRecipe)
    with pytest.raises(InvalidRequest, match=why):
        privacy.privacy_for(recipe, 10)


@pytest.mark.parametrize("clip", [0, math.inf, math.nan, -1.0])
def test_the_clipping_norm_must_be_positive_and_finite(clip: float, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="dp_clip"):
        recipe_for(tmp_path, tmp_path, dp=True, dp_clip=clip)


def test_impossible_private_runs_are_refused_before_data_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not after an hour of sending pictures through the autoencoder."""
    recipe = recipe_for(tmp_path / "no model", tmp_path / "no pictures", dp=True)
    with pytest.raises(UnsupportedOption, match="one device"):
        require_private(recipe, processes=2)
    with pytest.raises(InvalidRequest, match="one by one"):
        recipe_for(tmp_path, tmp_path, dp=True, accumulate=2)
    monkeypatch.setattr(privacy, "find_spec", lambda _name: object())
    held = recipe.model_copy(update={"holdout": 0.2, "patience": 3})
    with pytest.raises(InvalidRequest, match="in a separate folder"):
        learn(held, tmp_path)
    monkeypatch.setattr(privacy, "find_spec", lambda _name: None)
    with pytest.raises(UnsupportedOption, match=r"pip install 'safelight\[dp\]'"):
        learn(recipe, tmp_path)
