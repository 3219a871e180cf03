"""The network as PyTorch runs it, one kernel after another."""

import inspect
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safelight.diffusion.shapes import Latents, PerRow
from safelight.models.backends.denoiser import Conditions
from safelight.models.backends.mmdit import mmdit_denoiser
from safelight.models.hooks.hook import NetworkInputs, effects_on
from safelight.models.networks.load import Model

if TYPE_CHECKING:
    from safelight.models.backends.denoiser import Denoiser


def eager_denoiser(model: Model) -> "Denoiser":
    """A callable over the model's network; float32 in, float32 out, whatever format the network computes in."""
    if model.description.family.network == "transformer":
        return mmdit_denoiser(model)
    unet: Any = model.unet
    dtype = model.placement.dtype
    guidance_width = model.description.unet.get("time_cond_proj_dim")

    # Not through the model: this lives as long as the network, and a model may have another's autoencoder.
    hooks = model.hooks

    # Around it is a wrapper that imports peft, a good part of a cold start, to scale LoRA layers by 1.
    forward = inspect.unwrap(type(unet).forward)

    def denoise(latents: Latents, timesteps: PerRow, conditions: Conditions) -> Latents:
        added = None
        if conditions.pooled is not None and conditions.time_ids is not None:
            added = {"text_embeds": conditions.pooled.to(dtype), "time_ids": conditions.time_ids}
        with_guidance = None
        if guidance_width is not None and conditions.guidance is not None:
            with_guidance = guidance_embedding(conditions.guidance - 1, guidance_width).to(dtype)
        latents, context = latents.to(dtype), conditions.context.to(dtype)
        inputs = NetworkInputs(latents=latents, timesteps=timesteps, context=context, mask=conditions.mask, added=added)
        with effects_on(unet, hooks, conditions.effects, inputs) as arguments:
            output = forward(
                unet,
                latents,
                timesteps,
                encoder_hidden_states=context,
                encoder_attention_mask=conditions.mask,
                timestep_cond=with_guidance,
                added_cond_kwargs=added,
                return_dict=False,
                **arguments,
            )[0]
        return output.float()

    return denoise


def guidance_embedding(w: PerRow, width: int) -> Tensor:
    """Sines and cosines of the guidance scale w, for distilled networks (arXiv:2310.04378); (b, width)."""
    frequencies = torch.exp(torch.arange(width // 2, device=w.device) * -(math.log(10_000.0) / (width // 2 - 1)))
    angles = 1000.0 * w[:, None] * frequencies
    embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(embedding, (0, width % 2))
