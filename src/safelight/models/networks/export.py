"""A checkpoint written as one file in the original ldm layout, which nearly every other program reads.

What the layout has no place for is refused and not left out: the file is described again before it is written, and must
describe the same networks.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safelight.errors import CorruptModel, UnsupportedOption
from safelight.models.checkpoints.families import Description
from safelight.models.networks.components import Weights, open_parts
from safelight.models.weights.configurations import MissingTensors
from safelight.models.weights.identify import identify
from safelight.models.weights.ldm_weights import to_ldm
from safelight.models.weights.safetensors_file import Entry, Header
from safelight.models.weights.single_file import TEXT_PARTS, derive
from safelight.models.weights.tensor_file import NAMES, Plan, write_tensors

ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sdxl-refiner": "stable-diffusion-xl-v1-refiner",
}
"""Names of the Stability AI model metadata standard, which the `modelspec.` keys belong to."""
ASSUMED: Mapping[str, Mapping[str, Any]] = {
    "unet": {
        "norm_num_groups": 32, "act_fn": "silu", "norm_eps": 1e-5, "mid_block_type": "UNetMidBlock2DCrossAttn",
        "time_cond_proj_dim": None, "class_embed_type": None, "addition_embed_type": None, "flip_sin_to_cos": True,
        "freq_shift": 0, "center_input_sample": False, "resnet_time_scale_shift": "default",
        "num_attention_heads": None, "dual_cross_attention": False, "only_cross_attention": False,
        "encoder_hid_dim": None, "conv_in_kernel": 3, "conv_out_kernel": 3,
        "use_linear_projection": False, "transformer_layers_per_block": 1,
    },
    "vae": {
        "norm_num_groups": 32, "act_fn": "silu", "scaling_factor": 0.18215, "shift_factor": None,
        "latents_mean": None, "latents_std": None, "layers_per_block": 1, "mid_block_add_attention": True,
        "use_quant_conv": True, "use_post_quant_conv": True,
    },
    "scheduler": {"prediction_type": "epsilon", "beta_schedule": "linear", "rescale_betas_zero_snr": False},
}  # fmt: skip
"""What every reader of such a file takes for granted or reads from shapes, with the value that diffusers means by
silence."""


def export_single_file(about: Description, out: Path, *, dtype: torch.dtype, title: str) -> Path:
    """Write the checkpoint to one file.

    Raises:
        UnsupportedOption: the layout cannot say what this checkpoint is.
        StorageFailed: the disk is full, or the folder cannot be written to.
    """
    if about.family.name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedOption(
            "single-file", f"{about.path} is of family {about.family.name}; it is written for {known}"
        )
    opened = open_parts(about)
    weights = {part: opened.weights(part) for part in ("unet", "vae", *about.family.text_encoders)}
    stacks = dict(stacked(about, weights))
    plan = {name: (dtype, shape_of(parts)) for name, parts in stacks.items()}
    metadata = metadata_for(about, title=title)
    require_same(about, plan, metadata)
    write_tensors(out, plan, joined(stacks, weights), metadata=metadata)
    return out


def stacked(about: Description, weights: Mapping[str, Weights]) -> Iterator[tuple[str, Sequence[Tensor]]]:
    for part, found in weights.items():
        config = about.configuration(part)
        tensors = whole_names(found.tensors) if part in about.family.text_encoders else found.tensors
        try:
            yield from to_ldm(tensors, part, family=about.family.name, config=config)
        except (CorruptModel, KeyError) as error:
            raise UnsupportedOption("single-file", f"{about.path}: {part}: {error}") from None
        if part in about.family.text_encoders and (layer := unread_layer(tensors, about, part)):
            yield from layer


def whole_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers 5 writes a bare encoder's names without `text_model.`."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
    projection = ("text_projection.", "text_model.")
    return {name if name.startswith(projection) else f"text_model.{name}": tensor for name, tensor in kept.items()}


def unread_layer(tensors: Mapping[str, Tensor], about: Description, part: str) -> list[tuple[str, Sequence[Tensor]]]:
    """Stable Diffusion 2 never reads its encoder's last layer, and diffusers drops it; others expect it in the file.

    Zeros make a layer that changes nothing.
    """
    text_part = TEXT_PARTS[about.family.name][part]
    if not text_part.unread_layers:
        return []
    config = dict(about.configuration(part))
    last = config["num_hidden_layers"] - 1
    before = f"text_model.encoder.layers.{last}."
    zeros = {
        name.replace(before, f"text_model.encoder.layers.{last + 1}."): torch.zeros_like(tensor)
        for name, tensor in tensors.items()
        if name.startswith(before)
    }
    copy = dict(tensors) | zeros
    config["num_hidden_layers"] += 1
    whole = to_ldm(copy, part, family=about.family.name, config=config)
    return [(name, parts) for name, parts in whole if f".resblocks.{last + 1}." in name]


def shape_of(parts: Sequence[Tensor]) -> tuple[int, ...]:
    return (sum(part.shape[0] for part in parts), *parts[0].shape[1:]) if len(parts) > 1 else tuple(parts[0].shape)


def joined(stacks: Mapping[str, Sequence[Tensor]], weights: Mapping[str, Weights]) -> Iterator[tuple[str, Tensor]]:
    for name, parts in stacks.items():
        yield name, torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        for found in weights.values():
            for tensor in parts:
                found.let_go(tensor)


def metadata_for(about: Description, *, title: str) -> dict[str, str]:
    kind = ARCHITECTURES[about.family.name]
    if about.family.name == "sd2":
        kind += "-768-v" if about.prediction == "v_prediction" else "-512"
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": kind + task_of(about),
        "modelspec.implementation": "sgm" if about.family.told_size else "ldm",
        "modelspec.title": title,
        "modelspec.resolution": f"{about.defaults.width}x{about.defaults.height}",
        "modelspec.prediction_type": "v" if about.prediction == "v_prediction" else about.prediction,
    }


def task_of(about: Description) -> str:
    """How that standard tells networks that do not draw from words alone."""
    return "/inpaint" if about.inpaints_natively else "-edit" if about.reads == "instructions" else ""


def require_same(about: Description, plan: Plan, metadata: Mapping[str, str]) -> None:
    """The file, read back, must describe the networks it was written from."""
    entries = {name: Entry(NAMES[dtype], shape, 0, 0) for name, (dtype, shape) in plan.items()}
    header = Header(entries, metadata)
    what = identify(header)
    try:
        assert what is not None
        read = dict(derive(header, what))
    except (MissingTensors, AssertionError) as fault:
        raise UnsupportedOption("single-file", f"{about.path}: the layout has no place for {fault}") from None
    written = {"unet": about.unet, "vae": about.vae, "scheduler": about.scheduler}
    for part, config in written.items():
        usual = ASSUMED[part]
        names = [name for name in usual.keys() | read[part].keys() if name not in UNTOLD]
        for name in sorted(names):
            ours, theirs = config.get(name, usual.get(name)), read[part].get(name, usual.get(name))
            if spelt(name, ours, config) != spelt(name, theirs, config):
                raise UnsupportedOption(
                    "single-file",
                    f"{about.path}: readers of such a file take {part} {name} for {theirs!r}, and here it is {ours!r}; "
                    "keep this checkpoint as a folder",
                )


UNTOLD = ("sample_size", "upcast_attention", "_class_name", "steps_offset", "clip_sample", "set_alpha_to_one",
          "skip_prk_steps", "timestep_spacing", "num_train_timesteps")  # fmt: skip
"""Settings that change no network, or that a pipeline settles for itself."""


def spelt(name: str, value: Any, config: Mapping[str, Any]) -> Any:
    """One spelling for what diffusers writes as a number or as a list of them."""
    per_block = ("attention_head_dim", "transformer_layers_per_block")
    if name in per_block and isinstance(value, int):
        return [value] * len(config["block_out_channels"])
    return list(value) if isinstance(value, tuple) else value
