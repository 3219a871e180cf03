"""The full recipe: train every weight of a model, from captioned pictures to a model folder that diffusers can load.

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
from safelight.lifecycle.training.caption_augment import augment_caption
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

PIPELINE_CLASSES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
}


def train_full(run: Run, recipe: FullRecipe) -> Iterator[TrainingEvent]:
    """Continue training all weights of a model."""
    model = open_base(run, frozen=False)

    def augment(caption: str, rng: random.Random) -> str:
        return augment_caption(
            caption, rng, dropout=recipe.caption_dropout, shuffle=recipe.shuffle_tags, keep=recipe.keep_tokens
        )

    data = yield from prepare(run, model, augment=augment)

    parameters = unfreeze(networks_of(model, recipe.train))
    caption_encoder = CaptionEncoder(
        model,
        clip_skip=recipe.clip_skip or model.description.defaults.clip_skip,
        cache=recipe.cache_text and recipe.train == "unet" and not recipe.shuffle_tags,
    )
    learner = Learner(model, caption_encoder, data.levels, snr_gamma=recipe.snr_gamma)
    state = new_state(recipe, parameters, ema=recipe.ema)
    result = yield from fit(run, learner, state, data, draw=lambda step: draw_samples(run, model, step))

    state.load_final_weights(stopped_early=result.stopped_early)
    record = lineage(run, model, data.report, result)
    path = result_of(run)
    if run.accelerator.is_main_process:
        write_model(path, model, record)
        yield finish(run, path, record, result)


def unfreeze(networks: Mapping[str, nn.Module]) -> dict[str, dict[str, nn.Parameter]]:
    """Make all weights trainable; copy them, because the loaded ones may be a memory-mapped file."""
    for network in networks.values():
        for param in network.parameters():
            param.data = param.data.clone()
        network.requires_grad_(True).train()
    return {part: dict(network.named_parameters()) for part, network in networks.items()}


def write_model(folder: Path, model: Model, record: Mapping[str, Any]) -> None:
    """Write every part in diffusers' layout, atomically."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write_parts(partial, model)
        own = {**(read_own_settings(model.description.path)), "trained": record}
        own.pop("scheduler", None)  # scheduler_config.json holds it
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
    description = model.description
    index: dict[str, Any] = {"_class_name": PIPELINE_CLASSES[description.family.name], "_diffusers_version": "0.42.1"}
    for part, network in {"unet": model.unet, "vae": model.vae.network}.items():
        network.save_pretrained(folder / part)
        index[part] = ["diffusers", type(network).__name__]
    for part, encoder in zip(description.family.text_encoders, model.text_encoders, strict=True):
        encoder.network.save_pretrained(folder / part)
        tokenizer = tokenizer_of(part)
        write_tokenizer(folder / tokenizer, None if description.is_file else description.path / tokenizer)
        index[part] = ["transformers", type(encoder.network).__name__]
        index[tokenizer] = ["transformers", "CLIPTokenizer"]
    write_json(folder / "scheduler" / "scheduler_config.json", dict(description.scheduler))
    index["scheduler"] = ["diffusers", str(description.scheduler.get("_class_name", "DDIMScheduler"))]
    if description.family.name == "sdxl":
        index["force_zeros_for_empty_prompt"] = description.force_zeros_for_empty_prompt
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        index["requires_safety_checker"] = False
    write_json(folder / "model_index.json", index)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)


def write_tokenizer(folder: Path, base: Path | None) -> None:
    """Copy the base model's tokenizer files, or write CLIP's vocabulary in the format that loaders expect."""
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
