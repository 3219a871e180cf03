"""Runs from pictures to results: resumed, measured, stopped, used."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tests.fakes import SteppedEngine, draw, psnr, spec_for
from tests.lifecycle.training.short_runs import Checkpoints, finished, learn, recipe_for, write_pictures
from tests.tiny_models import load

from safelight.errors import InvalidRequest, UnsupportedOption
from safelight.lifecycle.training.events import Prepared, Sampled, Updated, Validated
from safelight.lifecycle.training.recipe import parse_recipe, read_recipe
from safelight.lifecycle.training.train import train
from safelight.models.checkpoints.families import describe
from safelight.models.networks.textual_inversion import load_embedding
from safelight.models.registry.registered_models import open_catalogue
from safelight.resolve.resolve import resolve
from safelight.settings import Settings
from safelight.studio import open_studio

EVERYTHING: dict[str, Any] = {
    "steps": 6, "train": "both", "shuffle_tags": True, "keep_tokens": 1, "caption_dropout": 0.3, "flip": True,
    "offset_noise": 0.1, "snr_gamma": 5.0, "accumulate": 2, "warmup": 2, "cooldown": 0.5, "save_every": 2,
    "holdout": 0.3, "validate_every": 2, "patience": 3,
}  # fmt: skip
"""All that draws or remembers."""


def losses(news: list[Any]) -> list[float]:
    return [item.loss for item in news if isinstance(item, Updated)]


def test_a_resumed_run_equals_one_that_never_stopped(checkpoint: Checkpoints, tmp_path: Path) -> None:
    recipe = recipe_for(checkpoint("sd1"), write_pictures(tmp_path / "data"), **EVERYTHING)
    whole = learn(recipe, tmp_path / "whole")
    settings = Settings(home=tmp_path / "cut", device="cpu")
    first = train(recipe, settings)
    heard = [next(news) for news in [first] for _ in range(1)]
    while not (isinstance(heard[-1], Updated) and heard[-1].step == 3):
        heard.append(next(first))
    first.close()
    rest = list(train(recipe, settings))
    assert losses(whole) == losses(heard) + losses(rest)
    assert finished(whole).path.read_bytes() == finished(rest).path.read_bytes()


def test_a_killed_run_resumes_from_its_checkpoint(checkpoint: Checkpoints, tmp_path: Path) -> None:
    recipe = recipe_for(
        checkpoint("sd1"), write_pictures(tmp_path / "data"), steps=30, save_every=5, validate_every=5, holdout=0.2
    )
    whole = learn(recipe, tmp_path / "whole")
    home, file = tmp_path / "killed", tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    command = [sys.executable, "-m", "safelight", "train", "lora", "--recipe", str(file), "--json", "--device", "cpu"]
    environment = os.environ | {"SAFELIGHT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if json.loads(line)["event"] == "saved":
                running.send_signal(signal.SIGKILL)
                break
    resumed = learn(recipe, home)
    steps = [item.step for item in resumed if isinstance(item, Updated)]
    assert steps[0] > 1
    assert steps[-1] == 30
    assert losses(resumed) == losses(whole)[-len(steps) :]
    assert finished(resumed).path.read_bytes() == finished(whole).path.read_bytes()


def test_the_recipe_in_the_folder_of_a_run_repeats_it(checkpoint: Checkpoints, tmp_path: Path) -> None:
    recipe = recipe_for(checkpoint("sd1"), write_pictures(tmp_path / "data"), steps=2)
    learn(recipe, tmp_path / "home")
    again = parse_recipe(read_recipe(tmp_path / "home/runs/learnt/recipe.yaml"))
    assert again == recipe


def test_a_run_is_not_resumed_with_another_recipe(checkpoint: Checkpoints, tmp_path: Path) -> None:
    data, out = write_pictures(tmp_path / "data"), tmp_path / "run"
    learn(recipe_for(checkpoint("sd1"), data, steps=2), tmp_path, out)
    with pytest.raises(InvalidRequest, match="a different rank, rate"):
        learn(recipe_for(checkpoint("sd1"), data, steps=2, rank=3, rate=0.1), tmp_path, out)


def test_the_folder_of_an_unfinished_run_is_not_reused(checkpoint: Checkpoints, tmp_path: Path) -> None:
    recipe = recipe_for(checkpoint("sd1"), write_pictures(tmp_path / "data"))
    first = train(recipe, Settings(home=tmp_path, device="cpu"))
    while not isinstance(next(first), Updated):
        pass
    first.close()
    with pytest.raises(InvalidRequest, match="a different rank"):
        learn(recipe.model_copy(update={"rank": 3}), tmp_path)


def test_a_taken_name_is_refused(checkpoint: Checkpoints, tmp_path: Path) -> None:
    taken = tmp_path / "home/loras/learnt.safetensors"
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"somebody's")
    with pytest.raises(InvalidRequest, match=r"has the name 'learnt' already, .* choose another with --name"):
        learn(recipe_for(checkpoint("sd1"), write_pictures(tmp_path / "data")), tmp_path / "home")
    assert taken.read_bytes() == b"somebody's"


def test_two_runs_do_not_share_a_folder(checkpoint: Checkpoints, tmp_path: Path) -> None:
    recipe = recipe_for(checkpoint("sd1"), write_pictures(tmp_path / "data"))
    first = train(recipe, Settings(home=tmp_path, device="cpu"))
    next(first)
    with pytest.raises(InvalidRequest, match="a run is in progress"):
        learn(recipe, tmp_path)
    first.close()


def test_an_open_studio_finds_a_new_lora(checkpoint: Checkpoints, tmp_path: Path) -> None:
    import asyncio

    settings = Settings(home=tmp_path, device="cpu")
    with open_studio(settings) as studio:
        recipe = recipe_for(checkpoint("sd1"), write_pictures(tmp_path / "data"), steps=2)
        done = finished(list(train(recipe, settings)))
        from safelight.spec import Draft

        draft = Draft(prompt="a photo <lora:learnt:0.5>", model=str(checkpoint("sd1")))
        spec = asyncio.run(resolve(draft, studio))
    assert spec.loras[0].digest == done.lineage["digest"]


def test_the_header_records_base_data_and_recipe(checkpoint: Checkpoints, tmp_path: Path) -> None:
    recipe = recipe_for(checkpoint("sd1"), write_pictures(tmp_path / "data"), steps=2, rank=3, alpha=2.0)
    done = finished(learn(recipe, tmp_path / "home"))
    with safe_open(done.path, "pt") as file:
        said = file.metadata()
    assert (said["ss_network_dim"], said["ss_network_alpha"], said["ss_steps"]) == ("3", "2.0", "2")
    assert said["ss_new_sd_model_hash"] == load(checkpoint("sd1")).digest
    assert json.loads(said["safelight.recipe"]) == recipe.model_dump(mode="json")
    assert said["ss_dataset_digest"] == json.loads((tmp_path / "home/runs/learnt/report.json").read_text())["digest"]


def test_caching_changes_nothing_but_the_time(checkpoint: Checkpoints, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", size=(80, 64))
    options: dict[str, Any] = {"flip": True, "caption_dropout": 0.3}
    kept = learn(recipe_for(checkpoint("sdxl"), data, **options), tmp_path / "kept")
    fresh = learn(
        recipe_for(checkpoint("sdxl"), data, **options, cache_latents=False, cache_text=False), tmp_path / "fresh"
    )
    # A batch of captions differs from one caption in the last bits of float32.
    np.testing.assert_allclose(losses(kept), losses(fresh), rtol=1e-5)


def test_gradient_checkpointing_changes_nothing_but_the_memory(checkpoint: Checkpoints, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data")
    plain = learn(recipe_for(checkpoint("sd1"), data, train="both"), tmp_path / "plain")
    thrifty = learn(
        recipe_for(checkpoint("sd1"), data, train="both", gradient_checkpointing=True), tmp_path / "thrifty"
    )
    np.testing.assert_allclose(losses(plain), losses(thrifty), rtol=1e-5)


def test_an_early_stop_keeps_the_best_weights(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """A rate that makes everything worse: the first measurement stays the best."""
    options: dict[str, Any] = {"rate": 0.5, "max_grad_norm": 1e6, "holdout": 0.3, "validate_every": 1, "patience": 2}
    data = write_pictures(tmp_path / "data")
    news = learn(recipe_for(checkpoint("sd1"), data, steps=40, **options), tmp_path / "home")
    measured = [item.loss for item in news if isinstance(item, Validated)]
    done = finished(news)
    assert done.stopped_early
    assert done.step < 40
    best = int(np.argmin(measured)) + 1
    assert best == done.step - 2
    short = learn(recipe_for(checkpoint("sd1"), data, steps=best, **options), tmp_path / "short")
    assert load_file(done.path).keys() == load_file(finished(short).path).keys()
    for name, weight in load_file(finished(short).path).items():
        torch.testing.assert_close(load_file(done.path)[name], weight)


def test_samples_are_drawn_with_the_current_weights(checkpoint: Checkpoints, tmp_path: Path) -> None:
    recipe = recipe_for(
        checkpoint("sd1"), write_pictures(tmp_path / "data"), prompts=["a photo"], sample_every=2, rate=0.05
    )
    sampled = [item.path for item in learn(recipe, tmp_path / "home") if isinstance(item, Sampled)]
    assert [path.name for path in sampled] == ["000002.png", "000004.png"]
    first, last = (Image.open(path) for path in sampled)
    assert first.size == (4 * 64, 64)
    assert psnr(first, last) < 40


def test_pictures_of_many_shapes_go_into_their_buckets(checkpoint: Checkpoints, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 2, size=(100, 50))
    write_pictures(data / "more", 3)
    [told] = [
        item for item in learn(recipe_for(checkpoint("sdxl"), data), tmp_path / "home") if isinstance(item, Prepared)
    ]
    assert told.buckets == {"64x64": 3, "88x40": 2}


def test_dreambooth_caches_its_class_pictures(checkpoint: Checkpoints, tmp_path: Path) -> None:
    recipe = recipe_for(
        checkpoint("sd1"),
        write_pictures(tmp_path / "data", captions=False),
        "dreambooth",
        prompt="a sks apple",
        class_prompt="a apple",
        class_pictures=3,
    )
    learn(recipe, tmp_path)
    drawn = sorted(tmp_path.glob("cache/class-pictures/*/*.png"))
    times = [path.stat().st_mtime_ns for path in drawn]
    model = load(checkpoint("sd1"))
    alone = draw(spec_for(model, prompt="a apple", seed=1, steps=25, sampler="DPM++ 2M Karras"), model)
    assert len(drawn) == 3
    assert psnr(Image.open(drawn[1]), alone) >= 50  # drawn three at once
    learn(recipe.model_copy(update={"name": "other"}), tmp_path)
    assert [path.stat().st_mtime_ns for path in drawn] == times


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_the_engine_draws_with_a_trained_embedding(kind: str, checkpoint: Checkpoints, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", captions=False)
    recipe = recipe_for(checkpoint(kind), data, "embedding", init="apple", vectors=2, rate=0.3, name="my-mug")
    done = finished(learn(recipe, tmp_path))
    assert set(load_file(done.path)) == ({"emb_params"} if kind == "sd1" else {"clip_l", "clip_g"})
    catalogue = open_catalogue(Settings(home=tmp_path))
    embedding = load_embedding(catalogue, "my-mug", done.lineage["digest"])
    assert embedding.num_vectors == 2
    model = load(checkpoint(kind))
    spec = spec_for(model, prompt="a photo of my-mug")
    with SteppedEngine() as job_service:
        job = job_service.add(spec, model, embeddings=(embedding,))
        job_service.finish()
        learnt = job_service.image(job)
    assert psnr(learnt, draw(spec, model)) < 50


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_fully_trained_model_can_be_loaded(kind: str, checkpoint: Checkpoints, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    recipe = recipe_for(checkpoint(kind), write_pictures(tmp_path / "data"), "full", train="both", ema=0.9, rate=1e-3)
    before = {path: path.read_bytes() for path in checkpoint(kind).rglob("*.safetensors")}
    done = finished(learn(recipe, tmp_path))
    assert done.path == open_catalogue(Settings(home=tmp_path)).find("learnt")
    assert not (tmp_path / "runs/learnt/learnt").exists(), "there is one copy of a model"
    model, base = load(done.path), load(checkpoint(kind))
    assert describe(done.path).defaults == base.description.defaults
    assert psnr(draw(spec_for(model), model), draw(spec_for(base), base)) < 40
    pipeline = DiffusionPipeline.from_pretrained(done.path)
    torch.testing.assert_close(dict(pipeline.unet.state_dict()), dict(model.unet.state_dict()))
    assert {path: path.read_bytes() for path in before} == before


def test_unavailable_options_are_refused(checkpoint: Checkpoints, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data")
    with pytest.raises(UnsupportedOption, match="needs a CUDA device"):
        learn(recipe_for(checkpoint("sd1"), data, optimizer="adamw8bit"), tmp_path)
    with pytest.raises(UnsupportedOption, match=r"safelight\[mlflow\]"):
        learn(recipe_for(checkpoint("sd1"), data, tracker="mlflow"), tmp_path)
    with pytest.raises(UnsupportedOption, match="train its base model"):
        learn(recipe_for(checkpoint("inpaint"), data), tmp_path)
    with pytest.raises(UnsupportedOption, match="training supports epsilon and v-prediction"):
        learn(recipe_for(checkpoint("flow"), data), tmp_path)
