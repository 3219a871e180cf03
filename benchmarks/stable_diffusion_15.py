"""A network of Stable Diffusion 1.5's size with random weights: speed does not depend on their values."""

from typing import Any

import torch

from safelight.models.backends.denoiser import Denoiser
from safelight.models.backends.eager import eager_denoiser
from safelight.models.checkpoints.families import FAMILIES, Description
from safelight.models.networks.load import Model
from safelight.models.networks.placement import Placement
from safelight.spec.complete import Defaults

UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
VAE = {"block_out_channels": (128, 256, 512, 512), "latent_channels": 4}


def random_model() -> tuple[Model, Denoiser]:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet: Any = UNet2DConditionModel(**UNET).requires_grad_(False).eval()
    unet.to(memory_format=torch.channels_last)
    description = Description(
        path=None,  # type: ignore[arg-type]  never read: nothing is loaded
        family=FAMILIES["sd1"],
        unet=UNET,
        vae=VAE,
        scheduler=SCHEDULER,
        force_zeros_for_empty_prompt=False,
        defaults=Defaults(width=512, height=512),
    )
    placement = Placement(torch.device("cpu"), torch.float32)
    model = Model(
        name="random",
        digest="0" * 64,
        description=description,
        placement=placement,
        unet=unet,
        vae=None,  # type: ignore[arg-type]  nothing is decoded
        text_encoders=(),
    )
    return model, eager_denoiser(model)
