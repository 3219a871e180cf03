"""The transformers of Stable Diffusion 3 and Flux (MMDiT, arXiv:2403.03206) as PyTorch runs them.

Both read the whole prompt, unmasked, so rows whose prompts differ in length (more than one chunk of CLIP's) are called
apart. Flux is given latents as a sequence of 2 x 2 patches, with the place of each; nobody else sees them so.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from safelight.diffusion.shapes import Latents, PerRow
from safelight.models.backends.denoiser import Conditions, Denoiser
from safelight.models.checkpoints.families import FLUX_PATCH
from safelight.models.hooks.hook import NetworkInputs, effects_on
from safelight.models.networks.load import Model

Call = Callable[[Latents, PerRow, Conditions], Latents]

FLUX_TIMESTEPS = 1000
"""Flux is told where it is on the way as a fraction, and the guidance scale as it is."""


def mmdit_denoiser(model: Model) -> Denoiser:
    """As `eager_denoiser`, for a model whose network is a transformer."""
    call = flux_call(model) if model.description.family.name == "flux" else sd3_call(model)

    def denoise(latents: Latents, timesteps: PerRow, conditions: Conditions) -> Latents:
        if conditions.mask is None:
            return call(latents, timesteps, conditions).float()
        outputs = torch.empty_like(latents)
        for rows in by_length(conditions.mask):
            outputs[rows] = call(latents[rows], timesteps[rows], conditions.take(rows).without_padding()).float()
        return outputs

    return denoise


def inputs_of(latents: Latents, timesteps: PerRow, conditions: Conditions) -> NetworkInputs:
    return NetworkInputs(latents=latents, timesteps=timesteps, context=conditions.context, mask=None, added=None)


def by_length(mask: Tensor) -> list[list[int]]:
    """Row indices by prompt length, from a mask (b, tokens)."""
    rows: defaultdict[int, list[int]] = defaultdict(list)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        rows[length].append(row)
    return list(rows.values())


def sd3_call(model: Model) -> Call:
    network: Any = model.unet
    dtype, hooks = model.placement.dtype, model.hooks
    forward = inspect.unwrap(type(network).forward)  # past a wrapper that imports peft

    def call(latents: Latents, timesteps: PerRow, conditions: Conditions) -> Latents:
        assert conditions.pooled is not None
        with effects_on(network, hooks, conditions.effects, inputs_of(latents, timesteps, conditions)) as arguments:
            return forward(
                network,
                hidden_states=latents.to(dtype),
                encoder_hidden_states=conditions.context.to(dtype),
                pooled_projections=conditions.pooled.to(dtype),
                timestep=timesteps,
                return_dict=False,
                **arguments,
            )[0]

    return call


def flux_call(model: Model) -> Call:
    network: Any = model.unet
    dtype, hooks = model.placement.dtype, model.hooks
    forward = inspect.unwrap(type(network).forward)

    def call(latents: Latents, timesteps: PerRow, conditions: Conditions) -> Latents:
        assert conditions.pooled is not None
        height, width = (side // FLUX_PATCH for side in latents.shape[-2:])
        device = latents.device
        with effects_on(network, hooks, conditions.effects, inputs_of(latents, timesteps, conditions)) as arguments:
            output = forward(
                network,
                hidden_states=packed(latents).to(dtype),
                encoder_hidden_states=conditions.context.to(dtype),
                pooled_projections=conditions.pooled.to(dtype),
                timestep=timesteps.to(dtype) / FLUX_TIMESTEPS,
                img_ids=places(height, width, device),
                txt_ids=torch.zeros(conditions.context.shape[1], 3, device=device),
                guidance=conditions.guidance,
                return_dict=False,
                **arguments,
            )[0]
        return unpacked(output, height, width)

    return call


def packed(latents: Latents) -> Tensor:
    """(b, c, h, w) as (b, h/2 w/2, 4 c): a patch's pixels one after another, channel by channel."""
    b, c, h, w = latents.shape
    patches = latents.view(b, c, h // FLUX_PATCH, FLUX_PATCH, w // FLUX_PATCH, FLUX_PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(patches: Tensor, height: int, width: int) -> Latents:
    """Latents of patches (b, height * width, c); height and width count patches."""
    b, _, c = patches.shape
    pixels = patches.view(b, height, width, c // FLUX_PATCH**2, FLUX_PATCH, FLUX_PATCH)
    return pixels.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, height * FLUX_PATCH, width * FLUX_PATCH)


def places(height: int, width: int, device: torch.device) -> Tensor:
    """(h w, 3) 0, row and column of each patch; the prompt's tokens are all at 0, 0, 0."""
    rows = torch.arange(height, device=device).repeat_interleave(width)
    columns = torch.arange(width, device=device).repeat(height)
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=1)
