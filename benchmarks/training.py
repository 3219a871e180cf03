"""Training steps per second: safelight's LoRA recipe against the loop of diffusers' train_text_to_image_lora.py.

Both train the same LoRA on the same networks and pictures. The script opens and encodes every picture at every step.
Safelight does so without caches; with caches, the default, it does so once. Seconds are CPU seconds of one thread.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import Report, ratio
from benchmarks.stable_diffusion_15 import VAE, random_model
from safelight.lifecycle.training.caption_encoder import CaptionEncoder
from safelight.lifecycle.training.events import Updated
from safelight.lifecycle.training.loop import Learner, fit, new_state
from safelight.lifecycle.training.lora_layers import add_lora
from safelight.lifecycle.training.recipe import parse_recipe
from safelight.lifecycle.training.run import open_run, prepare
from safelight.models.checkpoints.catalogue import MINI
from safelight.models.checkpoints.families import describe
from safelight.models.networks import latents
from safelight.models.networks.clip_vocabulary import clip_tokenizer
from safelight.models.networks.encode import TextEncoder
from safelight.models.networks.load import Model, load_model
from safelight.models.networks.placement import Placement
from safelight.settings import Settings

CPU = Placement(torch.device("cpu"), torch.float32)
Step = Callable[[], None]


def main() -> None:
    torch.set_num_threads(1)
    report = Report("training", "Training steps a second against diffusers' example script", "train_text_to_image_lora")
    for name, make, side, batch, rounds in (("mini", mini, 128, 4, 12), ("Stable Diffusion 1.5", sd15, 128, 1, 3)):
        model = make()
        with tempfile.TemporaryDirectory() as folder:
            data = write_pictures(Path(folder) / "data", side)
            learnt = add_lora({"unet": model.unet}, rank=4, alpha=4, layers="attention", seed=0)
            theirs = script(model, list(learnt["unet"].values()), data, side=side, batch=batch)
            sides = {
                "script": theirs,
                "plain": recipe(model, learnt, data, side=side, batch=batch, cache=False, home=Path(folder) / "plain"),
                "cached": recipe(model, learnt, data, side=side, batch=batch, cache=True, home=Path(folder) / "cached"),
            }
            spent = {key: list[float]() for key in sides}
            for _ in range(rounds + 1):
                for key, step in sides.items():
                    layout(model, torch.contiguous_format if key == "script" else torch.channels_last)
                    began = time.process_time()
                    step()
                    spent[key].append(time.process_time() - began)
            # The first step of each opens files and fills caches.
            speed = {key: 1 / median(seconds[1:]) for key, seconds in spent.items()}
        note = f"{side}x{side}, batch {batch}, rank 4, float32"
        for key, what in (("plain", "without caches"), ("cached", "with caches")):
            report.row(
                f"{name}, {what}, steps/s",
                peer=speed["script"],
                ours=speed[key],
                ratio=ratio(speed[key], speed["script"]),
                note=note,
            )
    report.finish()


def layout(model: Model, memory_format: torch.memory_format) -> None:
    """Give the networks the memory format in which the script, or safelight, would load them."""
    for network in (model.unet, model.vae.network):
        torch.nn.Module.to(network, memory_format=memory_format)


def mini() -> Model:
    return load_model(describe(MINI), name="mini", digest="0" * 64, placement=CPU)


def sd15() -> Model:
    from dataclasses import replace

    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    model, _ = random_model()
    vae: Any = AutoencoderKL(
        **VAE,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    text = TextEncoder(clip_tokenizer(), CLIPTextModel(config).requires_grad_(False).eval())
    return replace(model, vae=latents.VAE(vae.requires_grad_(False).eval()), text_encoders=(text,))


def write_pictures(folder: Path, side: int) -> Path:
    folder.mkdir()
    for number in range(8):
        levels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(levels).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a picture of thing {number}, in some style")
    return folder


def script(model: Model, params: list[Any], data: Path, *, side: int, batch: int) -> Step:
    """The body of the script's loop, at its defaults."""
    from accelerate import Accelerator
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    accelerator = Accelerator(cpu=True)
    scheduler: Any = DDPMScheduler.from_config(dict(model.description.scheduler))
    vae, encoder, unet = model.vae.network, model.text_encoders[0], accelerator.prepare(model.unet)
    optimizer = torch.optim.AdamW(params, lr=1e-4)

    def transformed(path: Path) -> dict[str, torch.Tensor]:
        image = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1) / 127.5 - 1
        ids = encoder.tokenizer.ids(path.with_suffix(".txt").read_text())[: encoder.tokenizer.max_length - 2]
        padding = [encoder.tokenizer.pad] * (encoder.tokenizer.max_length - 2 - len(ids))
        return {"pixels": pixels, "ids": torch.tensor([encoder.tokenizer.bos, *ids, encoder.tokenizer.eos, *padding])}

    class Pictures(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        paths = sorted(data.glob("*.png"))

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
            return transformed(self.paths[number])

    def endless() -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield from torch.utils.data.DataLoader(Pictures(), batch_size=batch, shuffle=True)

    batches = endless()

    def step() -> None:
        shown = next(batches)
        latents = vae.encode(shown["pixels"]).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),))
        noisy = scheduler.add_noise(latents, noise, timesteps)
        states = encoder.network(shown["ids"], return_dict=False)[0]
        velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        predicted = unet(noisy, timesteps, states, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), target.float(), reduction="mean")
        accelerator.gather(loss.repeat(batch)).mean().item()  # pyright: ignore[reportAttributeAccessIssue]
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def recipe(model: Model, learnt: Any, data: Path, *, side: int, batch: int, cache: bool, home: Path) -> Step:
    """The training loop of lifecycle/training/lora.py, on networks in memory."""
    said = {"kind": "lora", "name": "bench", "data": str(data), "resolution": side, "batch": batch, "steps": 10_000}
    chosen = parse_recipe(
        {**said, "tracker": "none", "save_every": 10_000, "cache_latents": cache, "cache_text": cache}
    )
    run = open_run(chosen, Settings(home=home, device="cpu"))
    preparing = prepare(run, model, augment=lambda caption, _rng: caption)
    prepared = returned(preparing)
    caption_encoder = CaptionEncoder(model, clip_skip=1, cache=cache)
    learner = Learner(model, caption_encoder, prepared.levels, snr_gamma=None)
    news = fit(run, learner, new_state(chosen, learnt), prepared, draw=lambda _step: iter(()))  # pyright: ignore

    def step() -> None:
        assert isinstance(next(news), Updated)

    return step


def returned(generator: Any) -> Any:
    while True:
        try:
            next(generator)
        except StopIteration as stop:
            return stop.value


if __name__ == "__main__":
    main()
