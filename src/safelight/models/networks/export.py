"""Write a checkpoint as one file in the original ldm layout, which nearly every other program reads.

Settings that the layout cannot express are refused, never dropped: before it is written, the file's header is
described again and must give the same networks.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safelight.errors import CorruptModel, UnsupportedOption
from safelight.models.checkpoints.families import Description
from safelight.models.networks.components import Weights, open_components
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
"""Settings that readers of such a file assume or infer from shapes, with diffusers' default for each."""


def export_single_file(description: Description, out: Path, *, dtype: torch.dtype, title: str) -> Path:
    """Write the checkpoint to one file.

    Raises:
        UnsupportedOption: the layout cannot express this checkpoint.
        StorageFailed: the disk is full, or the folder cannot be written to.
    """
    if description.family.name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedOption(
            "single-file",
            f"{description.path} is of family {description.family.name}; single files are written for {known}",
        )
    components = open_components(description)
    weights = {part: components.weights(part) for part in ("unet", "vae", *description.family.text_encoders)}
    pieces = dict(ldm_tensors(description, weights))
    plan = {name: (dtype, shape_of(parts)) for name, parts in pieces.items()}
    metadata = metadata_for(description, title=title)
    require_same(description, plan, metadata)
    write_tensors(out, plan, concatenated(pieces, weights), metadata=metadata)
    return out


def ldm_tensors(description: Description, weights: Mapping[str, Weights]) -> Iterator[tuple[str, Sequence[Tensor]]]:
    """Yield each tensor's name in the ldm layout, and the tensors (any shape) that are concatenated in it."""
    for part, found in weights.items():
        config = description.configuration(part)
        tensors = full_names(found.tensors) if part in description.family.text_encoders else found.tensors
        try:
            yield from to_ldm(tensors, part, family=description.family.name, config=config)
        except (CorruptModel, KeyError) as error:
            raise UnsupportedOption("single-file", f"{description.path}: {part}: {error}") from None
        if part in description.family.text_encoders and (layer := unused_last_layer(tensors, description, part)):
            yield from layer


def full_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add `text_model.` to the names: transformers 5 leaves it out for CLIPTextModel. Tensors of any shape."""
    named = {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
    projection = ("text_projection.", "text_model.")
    return {name if name.startswith(projection) else f"text_model.{name}": tensor for name, tensor in named.items()}


def unused_last_layer(
    tensors: Mapping[str, Tensor], description: Description, part: str
) -> list[tuple[str, Sequence[Tensor]]]:
    """Return a last text encoder layer of zeros, which changes nothing; tensors of any shape.

    Stable Diffusion 2 never uses that layer and diffusers drops it, but other programs expect it in the file.
    """
    text_part = TEXT_PARTS[description.family.name][part]
    if not text_part.unused_layers:
        return []
    config = dict(description.configuration(part))
    last = config["num_hidden_layers"] - 1
    before = f"text_model.encoder.layers.{last}."
    zeros = {
        name.replace(before, f"text_model.encoder.layers.{last + 1}."): torch.zeros_like(tensor)
        for name, tensor in tensors.items()
        if name.startswith(before)
    }
    copy = dict(tensors) | zeros
    config["num_hidden_layers"] += 1
    whole = to_ldm(copy, part, family=description.family.name, config=config)
    return [(name, parts) for name, parts in whole if f".resblocks.{last + 1}." in name]


def shape_of(parts: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the shape of the concatenated parts, which have any shape."""
    return (sum(part.shape[0] for part in parts), *parts[0].shape[1:]) if len(parts) > 1 else tuple(parts[0].shape)


def concatenated(
    pieces: Mapping[str, Sequence[Tensor]], weights: Mapping[str, Weights]
) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor (any shape) under its ldm name, and release its memory after it has been used."""
    for name, parts in pieces.items():
        yield name, torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        for found in weights.values():
            for tensor in parts:
                found.release(tensor)


def metadata_for(description: Description, *, title: str) -> dict[str, str]:
    kind = ARCHITECTURES[description.family.name]
    if description.family.name == "sd2":
        kind += "-768-v" if description.prediction == "v_prediction" else "-512"
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": kind + task_of(description),
        "modelspec.implementation": "sgm" if description.family.size_conditioned else "ldm",
        "modelspec.title": title,
        "modelspec.resolution": f"{description.defaults.width}x{description.defaults.height}",
        "modelspec.prediction_type": "v" if description.prediction == "v_prediction" else description.prediction,
    }


def task_of(description: Description) -> str:
    """Return the standard's suffix for networks that take more than a prompt."""
    return "/inpaint" if description.inpaints_natively else "-edit" if description.reads == "instructions" else ""


def require_same(description: Description, plan: Plan, metadata: Mapping[str, str]) -> None:
    """Raise UnsupportedOption unless the file, read back, describes the networks it was written from."""
    entries = {name: Entry(NAMES[dtype], shape, 0, 0) for name, (dtype, shape) in plan.items()}
    header = Header(entries, metadata)
    identity = identify(header)
    try:
        assert identity is not None
        read = dict(derive(header, identity))
    except (MissingTensors, AssertionError) as problem:
        raise UnsupportedOption("single-file", f"{description.path}: one file has no place for {problem}") from None
    written = {"unet": description.unet, "vae": description.vae, "scheduler": description.scheduler}
    for part, config in written.items():
        assumed = ASSUMED[part]
        names = [name for name in assumed.keys() | read[part].keys() if name not in IGNORED]
        for name in sorted(names):
            ours, theirs = config.get(name, assumed.get(name)), read[part].get(name, assumed.get(name))
            if normalised(name, ours, config) != normalised(name, theirs, config):
                raise UnsupportedOption(
                    "single-file",
                    f"{description.path}: readers of a single file assume {part} {name} is {theirs!r}; "
                    f"here it is {ours!r}; keep this checkpoint as a folder",
                )


IGNORED = ("sample_size", "upcast_attention", "_class_name", "steps_offset", "clip_sample", "set_alpha_to_one",
          "skip_prk_steps", "timestep_spacing", "num_train_timesteps")  # fmt: skip
"""Settings that change no network, or that a pipeline sets itself."""


def normalised(name: str, value: Any, config: Mapping[str, Any]) -> Any:
    """Return the value as a list where diffusers writes either one number or a list of them."""
    per_block = ("attention_head_dim", "transformer_layers_per_block")
    if name in per_block and isinstance(value, int):
        return [value] * len(config["block_out_channels"])
    return list(value) if isinstance(value, tuple) else value
