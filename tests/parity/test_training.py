"""Our recipes against the same recipes written directly with diffusers and peft, on the same draws.

Draws are data: which pictures, what noise, which timesteps. All else (latents, text states, noising, target, weights,
loss, gradients, AdamW, LoRA) is here what the training scripts of diffusers do.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from tests.fakes import psnr
from tests.lifecycle.training.lessons import Checkpoints, finished, learn, recipe_for, write_pictures
from tests.lora_files import active
from tests.parity.pipelines import Reference
from tests.parity.test_lora import ours_with
from tests.parity.test_pipelines import MIN_PSNR
from tests.tiny_models import load

from safelight.lifecycle.training.dataset import Dataset, TrainingBatch
from safelight.lifecycle.training.events import Updated
from safelight.lifecycle.training.lora_layers import ATTENTION
from safelight.lifecycle.training.recipe import AnyRecipe, DreamBoothRecipe
from safelight.lifecycle.training.seeds import seed_of

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers and peft warn of their own deprecations
STEPS, RANK = 4, 2
CLASS = "a photo of the apple"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[TrainingBatch]:
    """Every batch that a run was shown."""
    batches: list[TrainingBatch] = []
    draw = Dataset.batch

    def noting(self: Dataset, number: int, **where: Any) -> TrainingBatch:
        batches.append(draw(self, number, **where))
        return batches[-1]

    monkeypatch.setattr(Dataset, "batch", noting)
    return batches


@pytest.mark.parametrize(
    ("kind", "wishes"),
    [
        ("sd1", {}),
        ("sd1", {"snr_gamma": 5.0}),
        ("sd2", {}),
        ("sd2", {"snr_gamma": 5.0, "accumulate": 2}),
        ("sdxl", {}),
        ("sd1", {"kind": "dreambooth", "prompt": "the red apple", "class_prompt": CLASS, "class_pictures": 2}),
    ],
    ids=["epsilon", "epsilon min-SNR", "v", "v min-SNR accumulated", "SDXL", "prior preservation"],
)
def test_losses_and_weights_equal_those_of_the_recipe_written_with_diffusers(
    kind: str, wishes: dict[str, Any], checkpoint: Checkpoints, drawn: list[TrainingBatch], tmp_path: Path
) -> None:
    data = write_pictures(tmp_path / "data", 3)
    recipe = recipe_for(
        checkpoint(kind), data, **{"steps": STEPS, "rank": RANK, "alpha": 3, "layers": "attention"} | wishes
    )
    news = learn(recipe, tmp_path / "home")
    losses = [item.loss for item in news if isinstance(item, Updated)]
    theirs, weights = by_hand(checkpoint(kind), recipe, drawn, pictures(data, tmp_path / "home", recipe))
    # float32 through other layouts of memory and a cache; losses are near 1.
    np.testing.assert_allclose(losses, theirs, rtol=2e-5)
    ours = load_file(tmp_path / "home/runs/learnt/learnt.diffusers.safetensors")
    assert ours.keys() == weights.keys()
    for name, weight in weights.items():
        # AdamW's steps are as long as the rate, 1e-3, however small the gradient: rounding shows in a thousandth of it.
        torch.testing.assert_close(ours[name], weight, atol=5e-6, rtol=1e-3)


def pictures(data: Path, home: Path, recipe: AnyRecipe) -> dict[str, list[Image.Image]]:
    """By caption."""
    own = sorted(data.glob("*.png"))
    if isinstance(recipe, DreamBoothRecipe):
        drawn = sorted(home.glob("cache/class-pictures/*/*.png"))
        return {recipe.prompt: [Image.open(path) for path in own], CLASS: [Image.open(path) for path in drawn]}
    return {path.with_suffix(".txt").read_text(): [Image.open(path)] for path in own}


def by_hand(
    folder: Path, recipe: Any, batches: list[TrainingBatch], images: dict[str, list[Image.Image]]
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """diffusers' train_text_to_image_lora.py and train_dreambooth_lora.py, without what does not change numbers."""
    from diffusers import DDPMScheduler, DiffusionPipeline
    from diffusers.training_utils import compute_snr
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    with warnings.catch_warnings(action="ignore"):
        pipeline: Any = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    unet, vae = pipeline.unet, pipeline.vae
    for network in (unet, vae, pipeline.text_encoder):
        network.requires_grad_(False)
    scheduler: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
    torch.manual_seed(seed_of(recipe.seed, 0))
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=3, init_lora_weights="gaussian", target_modules=list(ATTENTION)))
    learnt = [param for param in unet.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=recipe.rate, weight_decay=recipe.weight_decay)
    losses: list[float] = []
    for step in range(STEPS):
        total = 0.0
        for batch in batches[step * recipe.accumulate : (step + 1) * recipe.accumulate]:
            # The same pictures by their latents: which of several with one caption is part of the draw.
            pixels = torch.stack(
                [nearest(vae, images[said], latent) for said, latent in zip(batch.captions, batch.latents, strict=True)]
            )
            latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
            noisy = scheduler.add_noise(latents, batch.noise, batch.timesteps)
            states, added = told(pipeline, batch)
            output = unet(noisy, batch.timesteps, states, added_cond_kwargs=added).sample
            velocity = scheduler.config.prediction_type == "v_prediction"
            target = scheduler.get_velocity(latents, batch.noise, batch.timesteps) if velocity else batch.noise
            if isinstance(recipe, DreamBoothRecipe):
                output, prior = output.chunk(2)
                target, prior_target = target.chunk(2)
                loss = F.mse_loss(output, target) + recipe.prior_weight * F.mse_loss(prior, prior_target)
            elif recipe.snr_gamma is None:
                loss = F.mse_loss(output, target)
            else:
                snr = compute_snr(scheduler, batch.timesteps)
                weights = torch.stack([snr, recipe.snr_gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
                weights = weights / (snr + 1 if velocity else snr)
                each = F.mse_loss(output, target, reduction="none")
                loss = (each.mean(dim=[1, 2, 3]) * weights).mean()
            (loss / recipe.accumulate).backward()
            total += float(loss) / recipe.accumulate
        torch.nn.utils.clip_grad_norm_(learnt, recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses, {f"unet.{name}": weight for name, weight in get_peft_model_state_dict(unet).items()}


def nearest(vae: Any, among: list[Image.Image], latent: torch.Tensor) -> torch.Tensor:
    candidates = [torch.tensor(np.asarray(image.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1 for image in among]
    with torch.no_grad():
        encoded = vae.encode(torch.stack(candidates)).latent_dist.mode() * vae.config.scaling_factor
    errors = (encoded - latent).abs().amax(dim=(1, 2, 3))
    assert errors.min() < 1e-4, "the latents that were learnt from are those of no picture"
    return candidates[int(errors.argmin())]


def told(pipeline: Any, batch: TrainingBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:
    if not hasattr(pipeline, "text_encoder_2"):
        ids = pipeline.tokenizer(
            batch.captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        ).input_ids
        return pipeline.text_encoder(ids)[0], None
    states, _, pooled, _ = pipeline.encode_prompt(batch.captions, do_classifier_free_guidance=False)
    return states, {"text_embeds": pooled, "time_ids": batch.time_ids}


@pytest.mark.parametrize("dialect", ["kohya", "diffusers"])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_both_files_draw_the_same_in_diffusers_and_here(
    kind: str, dialect: str, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    import diffusers

    # diffusers cannot read kohya's keys of a text encoder under transformers 5.
    train = "unet" if dialect == "kohya" else "both"
    recipe = recipe_for(
        checkpoint(kind), write_pictures(tmp_path / "data", 3), rate=3e-2, alpha=3, layers="all", train=train
    )
    done = finished(learn(recipe, tmp_path / "home"))
    path = done.path if dialect == "kohya" else tmp_path / "home/runs/learnt/learnt.diffusers.safetensors"
    theirs = Reference(checkpoint(kind))
    pipeline_class = getattr(diffusers, "StableDiffusionXLPipeline" if kind == "sdxl" else "StableDiffusionPipeline")
    pipeline = pipeline_class(**theirs.components_for(pipeline_class, theirs.components["scheduler"]))
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    model = load(checkpoint(kind))
    lora = active(path, model)
    assert lora.lora.unmatched == ()
    assert bool(any(lora.on_text())) == (train == "both")
    spec, picture = ours_with(lora, model)
    assert psnr(picture, theirs.draw(spec)) >= MIN_PSNR
    without = Reference(checkpoint(kind)).draw(spec.model_copy(update={"loras": ()}))
    assert psnr(picture, without) < 40, "nothing was learnt"
