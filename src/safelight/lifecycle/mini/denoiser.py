"""The denoiser recipe: text encoder and UNet, trained together on cached latents with v-prediction.

Read `train_denoiser` from top to bottom. A step's randomness depends only on (seed, step), so a resumed run equals an
uninterrupted one.
"""

import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from safelight.lifecycle.mini.metrics_csv import note
from safelight.lifecycle.mini.mini import MiniRecipe
from safelight.lifecycle.mini.networks import new_scheduler, new_text_encoder, new_unet
from safelight.lifecycle.mini.pictures import DrawnBatch, Pictures
from safelight.lifecycle.mini.sampling import assemble, draw_grid
from safelight.lifecycle.training.averaging import Average
from safelight.lifecycle.training.checkpoint import load_checkpoint, restore, save_checkpoint, snapshot
from safelight.lifecycle.training.optimizer import new_optimizers, set_rates
from safelight.lifecycle.training.rates import Until, rate_factor, shared_progress
from safelight.lifecycle.training.seeds import seed_of

DENOISER, STYLED = "denoiser.pt", "styled.pt"
"""Training states in the folder of a run: of the denoiser, and of the style training that follows."""


class MiniDenoiser(nn.Module):
    """Text encoder and UNet as one network: token ids, noisy latents and timesteps in, v out."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(self, ids: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Token ids (b, tokens), noisy latents (b, c, h, w), timesteps (b,) -> v (b, c, h, w)."""
        states = self.text_encoder(ids).last_hidden_state
        return self.unet(noisy, timesteps, states).sample


def new_denoiser(recipe: MiniRecipe, start: Path | None) -> MiniDenoiser:
    """Untrained networks, or the ones in a diffusers folder."""
    if start:
        text_encoder = CLIPTextModel.from_pretrained(start / "text_encoder", dtype=torch.float32)
        unet = UNet2DConditionModel.from_pretrained(start / "unet", torch_dtype=torch.float32)
    else:
        torch.manual_seed(recipe.denoiser.seed)
        text_encoder, unet = new_text_encoder(recipe), new_unet(recipe)
    # Channels last is the faster layout for small convolutions on CPUs.
    return MiniDenoiser(text_encoder.train(), unet.train()).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def train_denoiser(
    recipe: MiniRecipe,
    artwork: Path,
    out: Path,
    *,
    until: Until,
    start: MiniDenoiser | None = None,
    state: str = DENOISER,
) -> None:
    """Train, resuming from the file `state` in `out`, else starting from `start`, else from scratch."""
    denoiser = recipe.denoiser
    sharing = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(out), kwargs_handlers=[sharing])
    accelerator.init_trackers("denoiser")
    pictures = Pictures(recipe, artwork, out)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    network = start or new_denoiser(recipe, None)
    network.text_encoder.requires_grad_(denoiser.learns_text)
    optimizers = new_optimizers(
        network,
        muon_rate=denoiser.muon_rate,
        adam_rate=denoiser.adam_rate,
        weight_decay=denoiser.weight_decay,
        is_matrix=is_unet_matrix,
    )
    average = Average(network, denoiser.ema)
    model = accelerator.prepare(network)
    noise_levels = MiniNoiseLevels(denoiser.snr_gamma)
    path = out / state
    step, seconds = 0, 0.0
    if saved_state := load_checkpoint(path):
        step, seconds = restore(saved_state, network, average, optimizers)
    began = saved = time.time()

    def spent() -> float:
        """CPU seconds of all processes since this start."""
        return accelerator.num_processes * time.process_time()

    while (progress := shared_progress(accelerator, until, step, began)) < 1:
        factor = rate_factor(step, warmup=denoiser.warmup, progress=progress, cooldown=denoiser.cooldown)
        set_rates(optimizers, factor)
        drawn = pictures.draw(seed_of(denoiser.seed, step), denoiser.batch)
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        loss = denoising_loss(
            model,
            tokenizer,
            noise_levels,
            drawn,
            seed=seed_of(denoiser.seed, step, 1),
            part=mine,
            style_lead=denoiser.style_lead,
            style_lead_below=denoiser.style_lead_below,
        )
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), denoiser.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update()
        step += 1
        if step % 250 == 0 and accelerator.is_main_process:
            with average.applied():
                numbers = validate(network, tokenizer, noise_levels, pictures)
            numbers |= {"loss": loss.item(), "norm": float(norm or 0), "rate": factor}  # pyright: ignore[reportArgumentType]
            numbers |= {"samples": step * denoiser.batch, "cpu_hours": (seconds + spent()) / 3600}
            accelerator.log(numbers, step=step)
            note(out / "curve.csv", {"step": step, **numbers})
            shown = "  ".join(f"{name} {number:.4g}" for name, number in numbers.items())
            print(f"step {step}  {shown}", flush=True)
        if step % denoiser.grid_every == 0 and accelerator.is_main_process:
            with average.applied():
                draw_samples(network, out, step)
        if accelerator.is_main_process and time.time() - saved > denoiser.save_every_s:
            save_checkpoint(path, snapshot(step, seconds + spent(), network, average, optimizers))
            saved = time.time()
    if accelerator.is_main_process:
        save_checkpoint(path, snapshot(step, seconds + spent(), network, average, optimizers))
    accelerator.end_training()


class MiniNoiseLevels:
    """The scheduler's alphas as tensors: factors for noisy latents and v, and the loss weight of each timestep."""

    def __init__(self, snr_gamma: float) -> None:
        alphas = new_scheduler().alphas_cumprod.float()
        self.signal, self.noise = alphas.sqrt(), (1 - alphas).sqrt()
        snr = alphas / (1 - alphas)
        # min-SNR (arXiv:2303.09556) for v, plus 1 so that the pure-noise level still counts.
        self.weight = (snr.clamp(max=snr_gamma) + 1) / (snr + 1)


def denoising_loss(
    model: nn.Module,
    tokenizer: CLIPTokenizer,
    levels: MiniNoiseLevels,
    drawn: DrawnBatch,
    *,
    seed: int,
    part: slice = slice(None),
    style_lead: float = 0.0,
    style_lead_below: int = 0,
) -> Tensor:
    """The weighted error of v on this process's part of the batch, a scalar; with `style_lead`, of a v that exaggerates
    styles."""
    generator = torch.Generator().manual_seed(seed)
    count = len(drawn.captions)
    # One timestep from each of `count` equal slices: less variance than independent draws.
    places = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    timesteps = (places * len(levels.weight)).long()[part]
    noise = torch.randn(drawn.latents.shape, generator=generator)[part]
    noisy, v = noised(levels, drawn.latents[part], noise, timesteps)
    predicted = model(ids_of(tokenizer, drawn.captions[part]), noisy, timesteps)
    if style_lead:
        change = style_change(
            model, tokenizer, drawn, part, predicted=predicted, noisy=noisy, timesteps=timesteps, below=style_lead_below
        )
        v = v + style_lead * change
    return (levels.weight[timesteps] * (predicted - v).square().mean(dim=(1, 2, 3))).mean()


@torch.no_grad()
def style_change(
    model: nn.Module,
    tokenizer: CLIPTokenizer,
    drawn: DrawnBatch,
    part: slice,
    *,
    predicted: Tensor,
    noisy: Tensor,
    timesteps: Tensor,
    below: int,
) -> Tensor:
    """The change of v (b, c, h, w) by a caption's style words, from the network itself; zero for captions without style
    words, and for timesteps (b,) of `below` or more.

    Adding it to the target is guidance without a second call (arXiv:2502.12154), for one part of a caption.
    """
    captions, unstyled = drawn.captions[part], drawn.unstyled[part]
    rows = [
        row
        for row, (caption, bare, timestep) in enumerate(zip(captions, unstyled, timesteps.tolist(), strict=True))
        if caption != bare and timestep < below
    ]
    change = torch.zeros_like(predicted)
    if rows:
        bare = model(ids_of(tokenizer, [unstyled[row] for row in rows]), noisy[rows], timesteps[rows])
        change[rows] = predicted[rows] - bare
    return change


def noised(levels: MiniNoiseLevels, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents (b, c, h, w), and v = signal * noise - noise level * latents; timesteps (b,)."""
    signal, sigma = (level[timesteps].view(-1, 1, 1, 1) for level in (levels.signal, levels.noise))
    noisy = (signal * latents + sigma * noise).contiguous(memory_format=torch.channels_last)
    return noisy, signal * noise - sigma * latents


def ids_of(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids (b, tokens)."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


@torch.no_grad()
def validate(
    network: nn.Module, tokenizer: CLIPTokenizer, levels: MiniNoiseLevels, pictures: Pictures
) -> dict[str, float]:
    """Unweighted error of v on fixed samples: known pictures (all levels, the less noisy half) and held-out ones."""
    drawn = pictures.draw(seed_of(1, 2), 96)
    held = pictures.held[:: max(1, len(pictures.held) // 96)][:96]
    generator = torch.Generator().manual_seed(3)
    asked = [pictures.full_caption(row) for row in held]
    known = (drawn.latents, drawn.captions)
    sets = {"known": known, "held": (pictures.latents[[pictures.plain[row] for row in held]].float(), asked)}
    errors: dict[str, float] = {}
    for name, (latents, captions) in sets.items():
        timesteps = (torch.arange(len(captions)) * 1000) // len(captions)
        timesteps = timesteps[torch.randperm(len(timesteps), generator=generator)]
        noisy, v = noised(levels, latents, torch.randn(latents.shape, generator=generator), timesteps)
        each = (network(ids_of(tokenizer, captions), noisy, timesteps) - v).square().mean(dim=(1, 2, 3))
        errors[name] = each.mean().item()
        errors[name + "_half"] = each[timesteps < 500].mean().item()
    return errors


@torch.no_grad()
def draw_samples(network: MiniDenoiser, out: Path, step: int) -> None:
    """Write a sample grid of fixed prompts and seeds as `out`/grids/STEP.png."""
    pipeline = assemble(
        autoencoder=AutoencoderKL.from_pretrained(out / "vae"),
        text_encoder=network.text_encoder,
        unet=network.unet,
        tokenizer=out / "tokenizer",
    )
    (out / "grids").mkdir(exist_ok=True)
    draw_grid(pipeline, styles=("",)).save(out / "grids" / f"{step:07}.png")


def is_unet_matrix(name: str, param: Tensor) -> bool:
    """Whether a parameter, of any shape, is a hidden matrix of the UNet; all others use AdamW."""
    ends = ("conv_in", "conv_out", "time_emb", "add_embedding")
    return name.startswith("unet.") and param.ndim >= 2 and not any(end in name for end in ends)


def load_averaged(recipe: MiniRecipe, out: Path) -> tuple[MiniDenoiser, int]:
    """The averaged networks of the run in `out`, and their step: after the denoiser's or the style training, whichever
    is newer."""
    network = new_denoiser(recipe, None)
    saved = [path for path in (out / DENOISER, out / STYLED) if path.exists()]
    state = load_checkpoint(max(saved, key=lambda path: path.stat().st_mtime, default=out / DENOISER))
    if state is None:
        return network.eval(), 0
    for param, shadow in zip(network.parameters(), state["average"]["shadow"], strict=True):
        param.data.copy_(shadow)
    return network.eval(), int(state["step"])
