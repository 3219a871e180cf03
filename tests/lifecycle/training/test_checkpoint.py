"""A killed and resumed run ends with the same numbers as an uninterrupted one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from safelight.lifecycle.mini.denoiser import train_denoiser
from safelight.lifecycle.mini.mini import MINI, DenoiserRecipe, MiniRecipe, TextRecipe
from safelight.lifecycle.mini.tokenizer import train_tokenizer
from safelight.lifecycle.training.checkpoint import load_checkpoint, save_checkpoint
from safelight.lifecycle.training.rates import Until

TOY = replace(
    MINI,
    text=TextRecipe(vocabulary=600, max_length=16, width=16, layers=1, heads=2, feed_forward=32),
    denoiser=DenoiserRecipe(channels=(16, 32), heads=(2, 2), norm_groups=4, batch=4, warmup=2, cooldown=0.0),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight pictures of two concepts, as the earlier stages would leave them."""
    artwork = tmp_path / "artwork"
    artwork.mkdir()
    rows = [
        (name, style, own) for name in ("red-apple", "ghost") for style in ("noto", "flat") for own in (True, False)
    ]
    pictures = [
        {
            "concept": name,
            "style": style,
            "colour": "blue",
            "own_colour": own,
            "key": f"{name}/{style}/{'own' if own else 'blue'}",
        }
        for name, style, own in rows
    ]
    concepts = [
        {"slug": slug, "label": label, "keywords": ["thing"], "core": slug == "ghost"}
        for slug, label in (("red-apple", "red apple"), ("ghost", "ghost"))
    ]
    (artwork / "pictures.json").write_text(json.dumps(pictures))
    (artwork / "concepts.json").write_text(json.dumps(concepts))
    (artwork / "holdout.json").write_text(json.dumps(["ghost/flat/blue"]))
    (tmp_path / "views.json").write_text(json.dumps([(row, None) for row in range(len(rows))] + [(0, "pink")]))
    np.save(tmp_path / "latents.npy", np.random.default_rng(0).normal(size=(len(rows) + 1, 4, 8, 8)).astype(np.float16))
    train_tokenizer(["red apple", "ghost"] * 4, TOY.text, tmp_path / "tokenizer")
    return tmp_path


def train(recipe: MiniRecipe, data: Path, steps: int) -> dict[str, torch.Tensor]:
    train_denoiser(recipe, data / "artwork", data, until=Until(steps=steps))
    state = load_checkpoint(data / "denoiser.pt")
    assert state is not None
    assert state["step"] == steps
    return {name: value.clone() for name, value in state["network"].items()} | {
        f"average {n}": value for n, value in enumerate(state["average"]["shadow"])
    }


def test_a_resumed_run_equals_an_uninterrupted_one(data: Path) -> None:
    whole = train(TOY, data, 6)
    (data / "denoiser.pt").unlink()
    train(TOY, data, 3)
    resumed = train(TOY, data, 6)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        # Kernels on several threads may differ in the last bits.
        torch.testing.assert_close(resumed[name], value, atol=1e-5, rtol=1e-5)


def test_a_kill_while_saving_leaves_the_previous_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    save_checkpoint(path, {"step": 1})

    def killed(state: object, target: Path) -> None:
        target.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"step": 1}
