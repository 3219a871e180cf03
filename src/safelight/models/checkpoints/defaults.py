"""The default sampling settings of a checkpoint: from its own settings file, else those that suit its kind."""

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
    """Return the defaults in safelight's own settings file `where`, else those for this kind of checkpoint."""
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
        # Networks without a guidance input were distilled for few steps.
        takes_guidance = bool(unet.get("guidance_embeds"))
        values |= {
            "sampler": "Default",
            "steps": 28 if takes_guidance else 4,
            "guidance": 3.5 if takes_guidance else 1.0,
        }
    elif str(scheduler.get("_class_name")).startswith(("EDM", "FlowMatch")):
        values |= {"sampler": "Default"}  # few other samplers support their noise levels
    elif scheduler.get("rescale_betas_zero_snr"):
        values |= {"sampler": "DDIM", "guidance_rescale": 0.7}
    values |= own.get("defaults", {})
    try:
        return Defaults(**values)
    except ValidationError as error:
        raise CorruptModel(f"{where}: defaults: {explain(error, list(Defaults.model_fields))}") from None


def is_turbo(scheduler: Mapping[str, Any]) -> bool:
    """Whether it is SD-turbo or SDXL-turbo, which only their scheduler's configuration shows."""
    return (
        scheduler.get("timestep_spacing") == "trailing"
        and scheduler.get("_class_name") in ("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler")
        and not scheduler.get("rescale_betas_zero_snr")
    )
