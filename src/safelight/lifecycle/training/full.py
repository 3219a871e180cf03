"""The full recipe: every weight of a model, from captioned pictures to a model folder that diffusers loads, too.

Read `train_full` from top to bottom.
"""

import json
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from safelight.errors import StorageFailed
from safelight.lifecycle.training.caption_augment import worded
from safelight.lifecycle.training.caption_encoder import CaptionEncoder
from safelight.lifecycle.training.drawing import draw_samples
from safelight.lifecycle.training.events import TrainingEvent
from safelight.lifecycle.training.loop import Learner, fit, new_state
from safelight.lifecycle.training.lora_layers import networks_of
from safelight.lifecycle.training.recipe import FullRecipe
from safelight.lifecycle.training.results import finish, lineage
from safelight.lifecycle.training.run import Run, open_base, prepare, result_of
from safelight.models.checkpoints.families import read_own_settings, tokenizer_of
from safelight.models.networks.clip_vocabulary import read_merges
from safelight.models.networks.load import Model

CLASSES = {"sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


def train_full(run: Run, recipe: FullRecipe) -> Iterator[TrainingEvent]:
    """Go on training a model as it was trained before."""
    model = open_base(run, frozen=False)

    def say(caption: str, draw: random.Random) -> str:
        return worded(
            caption, draw, dropout=recipe.caption_dropout, shuffle=recipe.shuffle_tags, keep=recipe.keep_tokens
        )

    data = yield from prepare(run, model, say=say)

    learnt = open_up(networks_of(model, recipe.train))
    reader = CaptionEncoder(
        model,
        clip_skip=recipe.clip_skip or model.description.defaults.clip_skip,
        remember=recipe.cache_text and recipe.train == "unet" and not recipe.shuffle_tags,
    )
    learner = Learner(model, reader, data.levels, snr_gamma=recipe.snr_gamma)
    state = new_state(recipe, learnt, ema=recipe.ema)
    ended = yield from fit(run, learner, state, data, draw=lambda step: draw_samples(run, model, step))

    state.settle(stopped_early=ended.stopped_early)
    known = lineage(run, model, data.report, ended)
    path = result_of(run)
    if run.accelerator.is_main_process:
        write_model(path, model, known)
        yield finish(run, path, known, ended)


def open_up(networks: Mapping[str, nn.Module]) -> dict[str, dict[str, nn.Parameter]]:
    """All weights are to be learnt; copies, since those that were loaded may be a file that is mapped into memory."""
    for network in networks.values():
        for param in network.parameters():
            param.data = param.data.clone()
        network.requires_grad_(True).train()
    return {part: dict(network.named_parameters()) for part, network in networks.items()}


def write_model(folder: Path, model: Model, known: Mapping[str, Any]) -> None:
    """Every part, as diffusers writes it; whole, or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write_parts(partial, model)
        own = {**(read_own_settings(model.description.path)), "trained": known}
        own.pop("scheduler", None)  # it has a file of its own here
        write_json(partial / "safelight.json", own)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageFailed(
            f"the model could not be written to {folder}: {error}; free some space and run it again"
        ) from None


def write_parts(folder: Path, model: Model) -> None:
    about = model.description
    index: dict[str, Any] = {"_class_name": CLASSES[about.family.name], "_diffusers_version": "0.42.1"}
    for part, network in {"unet": model.unet, "vae": model.vae.network}.items():
        network.save_pretrained(folder / part)
        index[part] = ["diffusers", type(network).__name__]
    for part, encoder in zip(about.family.text_encoders, model.text_encoders, strict=True):
        encoder.network.save_pretrained(folder / part)
        tokenizer = tokenizer_of(part)
        write_tokenizer(folder / tokenizer, None if about.is_file else about.path / tokenizer)
        index[part] = ["transformers", type(encoder.network).__name__]
        index[tokenizer] = ["transformers", "CLIPTokenizer"]
    write_json(folder / "scheduler" / "scheduler_config.json", dict(about.scheduler))
    index["scheduler"] = ["diffusers", str(about.scheduler.get("_class_name", "DDIMScheduler"))]
    if about.family.name == "sdxl":
        index["force_zeros_for_empty_prompt"] = about.force_zeros_for_empty_prompt
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        index["requires_safety_checker"] = False
    write_json(folder / "model_index.json", index)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)


def write_tokenizer(folder: Path, base: Path | None) -> None:
    """The base's own files, or CLIP's vocabulary in the files that every loader reads."""
    if base is not None:
        shutil.copytree(base, folder)
        return
    vocabulary, merges = read_merges()
    write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    end = "<|endoftext|>"
    settings = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "model_max_length": 77}
    pad = "!" if folder.name == "tokenizer_2" else end
    write_json(folder / "tokenizer_config.json", {**settings, "pad_token": pad, "tokenizer_class": "CLIPTokenizer"})


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
