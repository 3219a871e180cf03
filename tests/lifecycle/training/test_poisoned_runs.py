"""An error ends a run with a clear message, and leaves the last good checkpoint."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.lifecycle.training.short_runs import Checkpoints, finished, learn, recipe_for, write_pictures
from torch.optim import AdamW

from safelight.errors import InvalidRequest, JobFailed, StorageFailed
from safelight.lifecycle.training import loop
from safelight.lifecycle.training.checkpoint import load_checkpoint
from safelight.lifecycle.training.events import Prepared, Saved, Updated
from safelight.lifecycle.training.recipe import AnyRecipe


@pytest.fixture
def recipe(checkpoint: Checkpoints, tmp_path: Path) -> AnyRecipe:
    return recipe_for(checkpoint("sd1"), write_pictures(tmp_path / "data"), steps=6, save_every=2)


def state_of(home: Path) -> dict[str, Any]:
    state = load_checkpoint(home / "runs/learnt/state.pt")
    assert state is not None
    return state


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run_before_the_update(
    poison: str, recipe: AnyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = loop.Learner.forward, 0

    def poisoned(self: loop.Learner, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = forward(self, batch)
        if calls != 4:
            return loss
        # A loss of 0 whose derivative is infinite, or a loss that is none.
        return (loss - loss.detach()).sqrt() if poison == "gradient" else loss * float("nan")

    monkeypatch.setattr(loop.Learner, "forward", poisoned)
    with pytest.raises(
        JobFailed, match=rf"the {poison} is not a number at step 4; the weights of step 3 are in .*--steps 3"
    ):
        learn(recipe, tmp_path)
    state = state_of(tmp_path)
    assert state["step"] == 3
    assert all(weight.isfinite().all() for weight in state["weights"].values())
    done = finished(learn(recipe.model_copy(update={"steps": 3}), tmp_path))
    monkeypatch.undo()
    clean = finished(learn(recipe.model_copy(update={"steps": 3}), tmp_path / "clean"))
    for name, weight in load_file(clean.path).items():
        assert torch.equal(load_file(done.path)[name], weight)


def test_an_interrupt_within_a_step_is_deferred_to_its_end(
    recipe: AnyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, calls = AdamW.step, 0

    def interrupted(self: AdamW) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        update(self)

    monkeypatch.setattr(AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn(recipe, tmp_path)
    assert state_of(tmp_path)["step"] == 2
    monkeypatch.undo()
    done = finished(learn(recipe, tmp_path))
    clean = finished(learn(recipe, tmp_path / "clean"))
    assert done.path.read_bytes() == clean.path.read_bytes()


def test_a_full_disk_leaves_the_previous_checkpoint(
    recipe: AnyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = torch.save, 0

    def full(state: Any, path: Path) -> None:
        nonlocal saved
        saved += 1
        if saved > 1:
            path.write_bytes(b"as much as there was room for")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        StorageFailed,
        match=r"the checkpoint of step 4 could not be written .*No space left.*the checkpoint of step 2 is intact",
    ):
        learn(recipe, tmp_path)
    assert state_of(tmp_path)["step"] == 2
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.undo()
    assert [item.step for item in learn(recipe, tmp_path) if isinstance(item, Updated)] == [3, 4, 5, 6]


def test_a_result_that_cannot_be_written_can_be_written_later(recipe: AnyRecipe, tmp_path: Path) -> None:
    (tmp_path / "versions").write_text("a file where the folder should be")
    with pytest.raises(StorageFailed, match="run the command again; the training itself is finished"):
        learn(recipe, tmp_path)
    (tmp_path / "versions").unlink()
    news = learn(recipe, tmp_path)
    assert finished(news).path.is_file()
    assert not [item for item in news if isinstance(item, Updated)]


def test_a_missing_caption_is_reported_before_training(recipe: AnyRecipe, tmp_path: Path) -> None:
    (tmp_path / "data/3.txt").unlink()
    with pytest.raises(InvalidRequest, match=r"missing caption: 3\.png; fix these, or skip them with --skip-bad"):
        learn(recipe, tmp_path)
    assert not list(tmp_path.rglob("state.pt"))
    news = learn(recipe.model_copy(update={"skip_bad": True}), tmp_path)
    assert [item.num_pictures for item in news if isinstance(item, Prepared)] == [4]


def test_a_corrupt_picture_is_reported_before_training(recipe: AnyRecipe, tmp_path: Path) -> None:
    damaged = tmp_path / "data/1.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(InvalidRequest, match=r"unreadable picture: 1\.png \(the PNG is cut short or damaged"):
        learn(recipe, tmp_path)
    finished(learn(recipe.model_copy(update={"skip_bad": True}), tmp_path))


def test_data_without_any_good_picture_is_an_error_even_with_skip_bad(checkpoint: Checkpoints, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", captions=False)
    with pytest.raises(InvalidRequest, match="no pictures are left to train on"):
        learn(recipe_for(checkpoint("sd1"), data, skip_bad=True), tmp_path)


def test_a_truncated_latent_cache_is_rebuilt(recipe: AnyRecipe, tmp_path: Path) -> None:
    learn(recipe, tmp_path)
    cache = tmp_path / "runs/learnt/latents.safetensors"
    whole = cache.read_bytes()
    cache.write_bytes(whole[: len(whole) // 2])
    news = learn(recipe.model_copy(update={"steps": 8}), tmp_path)
    assert [item.step for item in news if isinstance(item, Saved)] == [8]
    assert cache.read_bytes() == whole
