"""What a checkpoint draws best with, where nobody chooses: its own word, else what suits its kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from safelight.errors import CorruptModel
from safelight.models.checkpoints.family import Family
from safelight.spec.complete import Defaults
from safelight.validation import explain


def read_defaults(
    where: Path,
    own: Mapping[str, Any],
    family: Family,
    *,
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    scheduler: Mapping[str, Any],
) -> Defaults:
    """What safelight's own file, `where`, says; else what suits checkpoints of this kind."""
    sample_size = unet.get("sample_size")
    side = (
        sample_size * 2 ** (len(vae["block_out_channels"]) - 1) if isinstance(sample_size, int) else family.default_side
    )
    values: dict[str, Any] = {"width": side, "height": side}
    if unet.get("time_cond_proj_dim") is not None or scheduler.get("_class_name") in ("LCMScheduler", "TCDScheduler"):
        values |= {"sampler": "Default", "steps": 4, "guidance": 8.0 if unet.get("time_cond_proj_dim") else 1.0}
    elif is_turbo(scheduler):
        values |= {"sampler": "Default", "steps": 2, "guidance": 0.0, "width": 512, "height": 512, "strength": 0.5}
    elif family.name == "flux":
        # The networks that are told no guidance were distilled to draw in few steps.
        told = bool(unet.get("guidance_embeds"))
        values |= {"sampler": "Default", "steps": 28 if told else 4, "guidance": 3.5 if told else 1.0}
    elif str(scheduler.get("_class_name")).startswith(("EDM", "FlowMatch")):
        values |= {"sampler": "Default"}  # only few others walk their noise levels
    elif scheduler.get("rescale_betas_zero_snr"):
        values |= {"sampler": "DDIM", "guidance_rescale": 0.7}
    values |= own.get("defaults", {})
    try:
        return Defaults(**values)
    except ValidationError as error:
        raise CorruptModel(f"{where}: defaults: {explain(error, list(Defaults.model_fields))}") from None


def is_turbo(scheduler: Mapping[str, Any]) -> bool:
    """SD-turbo and SDXL-turbo are told apart by nothing but their scheduler."""
    return (
        scheduler.get("timestep_spacing") == "trailing"
        and scheduler.get("_class_name") in ("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler")
        and not scheduler.get("rescale_betas_zero_snr")
    )
