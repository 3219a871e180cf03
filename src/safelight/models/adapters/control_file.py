"""A ControlNet or T2I-Adapter on disk: what it is, whether it is for the model at hand, and its tensors' names.

| layout                                  | told by                                                     |
|-----------------------------------------|-------------------------------------------------------------|
| a diffusers folder                      | `config.json`                                               |
| a single file in diffusers' names       | `controlnet_cond_embedding.`, `adapter.conv_in.`            |
| a single file as the authors wrote it   | `control_model.input_hint_block.`, `body.0.block1.`         |
| a Control-LoRA                          | `lora_controlnet`                                           |

A single file has no configuration. A ControlNet is a copy of half of its model's network, so it takes the model's, with
what its own shapes say otherwise. Imports no torch: a network of another family is refused before anything is loaded.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safelight.errors import CorruptModel, IncompatibleControl, InvalidRequest, UnsupportedOption
from safelight.models.checkpoints.families import Description, read_config
from safelight.models.vision.preprocessors import PREPROCESSOR_KINDS
from safelight.models.weights.control_lora import full_shapes, low_rank_factors
from safelight.models.weights.control_names import DEEPER, LDM_PREFIX, from_ldm_control, from_original_t2i, number_in
from safelight.models.weights.safetensors_file import NETWORK, read_header, weight_files
from safelight.spec import ControlRequest
from safelight.spec.effects import HINT_KINDS, HintKind

Kind = Literal["controlnet", "controlnet-union", "t2i-adapter"]
Shapes = Mapping[str, tuple[int, ...]]
CLASSES: dict[str, Kind] = {
    "ControlNetModel": "controlnet",
    "ControlNetUnionModel": "controlnet-union",
    "T2IAdapter": "t2i-adapter",
}
CONTEXT_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL"}
OTHERS = {
    "lllite_": "a ControlNet-LLLite",
    "difference": "the difference of a ControlNet to its model",
    "controlnet_x_embedder": "a ControlNet for Flux",
    "controlnet_blocks.": "a ControlNet for a transformer",
    "transformer_blocks.0.": "a ControlNet for a transformer",
}
"""Keys, by how they begin, of what goes by the same name and is another thing."""
FROM_MODEL = (
    "act_fn", "addition_embed_type", "addition_embed_type_num_heads", "addition_time_embed_dim",
    "attention_head_dim", "class_embed_type", "downsample_padding", "encoder_hid_dim", "encoder_hid_dim_type",
    "flip_sin_to_cos", "freq_shift", "layers_per_block", "mid_block_scale_factor", "mid_block_type", "norm_eps",
    "norm_num_groups", "num_attention_heads", "num_class_embeds", "only_cross_attention",
    "projection_class_embeddings_input_dim", "resnet_time_scale_shift", "upcast_attention", "use_linear_projection",
)  # fmt: skip
"""Settings of a model's network that its ControlNets share, and that no shape shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlFile:
    path: Path
    kind: Kind
    config: Mapping[str, Any]
    """As diffusers writes it."""
    files: Sequence[Path]
    names: Mapping[str, str]
    """The tensors' names in the files, and in diffusers' network."""
    changes: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of a Control-LoRA: the modules whose factors the file holds, and the weights that they are added to."""

    @property
    def hint_kinds(self) -> tuple[HintKind, ...]:
        """That it tells apart, in the order of its own numbers; none where it was trained for one kind alone."""
        known: int = self.config.get("num_control_type", 6) if self.kind == "controlnet-union" else 0
        return HINT_KINDS[:known]


def describe_control(path: Path, model: Description, *, name: str, model_name: str) -> ControlFile:
    """What is at `path`, if it is for this model.

    Raises:
        IncompatibleControl: it is for a network of other widths.
        UnsupportedOption: it is something else that goes by the same name.
        UnsafeFile, CorruptModel: as `read_header`.
    """
    require_unet(model, name=name, model_name=model_name)
    found = describe_folder(path) if path.is_dir() else describe_file(path, model)
    require_fit(found, model, name=name, model_name=f"{model_name} ({model.family.name})")
    return found


def require_unet(model: Description, *, name: str, model_name: str) -> None:
    """Raises IncompatibleControl where the model's network is a transformer."""
    if model.family.network != "unet":
        why = "it is for a UNet, and the model's network is a transformer"
        raise IncompatibleControl(name, why, model=f"{model_name} ({model.family.name})")


def describe_folder(folder: Path) -> ControlFile:
    config = read_config(folder / "config.json")
    kind = CLASSES.get(str(config.get("_class_name")))
    if kind is None:
        raise UnsupportedOption(
            "controls", f"{folder} is a {config.get('_class_name')}; known are {', '.join(CLASSES)}"
        )
    files = weight_files(folder, NETWORK)
    names = {name: name for file in files for name in read_header(file).tensors}
    return ControlFile(path=folder, kind=kind, config=config, files=files, names=names)


def describe_file(path: Path, model: Description) -> ControlFile:
    stored = {name: entry.shape for name, entry in read_header(path).tensors.items()}
    shapes = full_shapes(stored)
    bare = {name: name.removeprefix(LDM_PREFIX) for name in shapes}
    for start, what in OTHERS.items():
        if any(name.startswith(start) for name in bare.values()):
            raise UnsupportedOption("controls", f"{path} is {what}, which is not supported")
    names: Mapping[str, str | None]
    if any(DEEPER.match(name) and "input_hint_block" in name for name in bare.values()):
        renamed = from_ldm_control(bare.values(), model.unet)
        names = {name: renamed[short] for name, short in bare.items()}
    elif any(name.startswith("controlnet_cond_embedding.") for name in shapes):
        names = bare
    elif any(re.match(r"(adapter\.)?body\.\d+\.", name) for name in shapes):
        return describe_t2i(path, shapes, model)
    else:
        raise UnsupportedOption("controls", f"{path} holds none of the tensors of a ControlNet or T2I-Adapter")
    if unknown := [name for name, ours in names.items() if ours is None]:
        why = f"it has {len(unknown)} tensors that no ControlNet for this model has, the first is {unknown[0]}"
        raise IncompatibleControl(path.name, why, model=model.path.name, made_for=made_for(shapes))
    known = {name: ours for name, ours in names.items() if ours is not None}
    ours = {known[name]: shapes[name] for name in known}
    config = controlnet_config(ours, model, path)
    if "task_embedding" not in ours:
        changes = {module: known[f"{module}.weight"] for module in low_rank_factors(stored)}
        whole = {name: here for name, here in known.items() if name in stored}
        return ControlFile(path=path, kind="controlnet", config=config, files=[path], names=whole, changes=changes)
    config |= union_config(ours, path)
    return ControlFile(path=path, kind="controlnet-union", config=config, files=[path], names=known)


def controlnet_config(shapes: Shapes, model: Description, path: Path) -> dict[str, Any]:
    """The model's configuration, with the widths and depths that the shapes show."""
    config = {name: model.unet[name] for name in FROM_MODEL if model.unet.get(name) is not None}
    try:
        channels = widths_of_blocks(shapes)
        depths = [depth_of(f"down_blocks.{block}.attentions.0.", shapes) for block in range(len(channels))]
        middle = depth_of("mid_block.attentions.0.", shapes)
        context = next(shape[-1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
        hints = [shapes["controlnet_cond_embedding.conv_in.weight"][0]]
        blocks = sum(bool(re.fullmatch(r"controlnet_cond_embedding\.blocks\.\d+\.weight", name)) for name in shapes)
        hints += [shapes[f"controlnet_cond_embedding.blocks.{block}.weight"][0] for block in range(1, blocks, 2)]
        config |= {
            "_class_name": "ControlNetModel",
            "in_channels": shapes["conv_in.weight"][1],
            "conditioning_channels": shapes["controlnet_cond_embedding.conv_in.weight"][1],
            "block_out_channels": channels,
            "down_block_types": [f"{'CrossAttn' if depth else ''}DownBlock2D" for depth in depths],
            # The middle is as deep as the last block; a block without attention has no depth of its own.
            "transformer_layers_per_block": [*(depth or 1 for depth in depths[:-1]), depths[-1] or middle or 1],
            "cross_attention_dim": context,
            "conditioning_embedding_out_channels": hints,
        }
    except (KeyError, IndexError, StopIteration) as error:
        raise CorruptModel(f"{path} is a ControlNet that lacks {error or 'its attention'}") from None
    return config


def union_config(shapes: Shapes, path: Path) -> dict[str, Any]:
    """What a ControlNet has more that tells several kinds of hints apart."""
    try:
        kinds, width = shapes["task_embedding"]
        return {
            "_class_name": "ControlNetUnionModel",
            "num_control_type": kinds,
            "num_trans_channel": width,
            "num_trans_layer": len({name.split(".")[1] for name in shapes if name.startswith("transformer_layes.")}),
            "num_proj_channel": shapes["spatial_ch_projs.weight"][0],
            "addition_time_embed_dim": shapes["control_add_embedding.linear_1.weight"][1] // kinds,
        }
    except (KeyError, ValueError) as error:
        raise CorruptModel(f"{path} is a ControlNet Union that lacks {error}") from None


def widths_of_blocks(shapes: Shapes) -> list[int]:
    blocks = 1 + max(number_in(r"down_blocks\.(\d+)\.", name) or 0 for name in shapes)
    return [shapes[f"down_blocks.{block}.resnets.0.conv2.weight"][0] for block in range(blocks)]


def depth_of(attention: str, shapes: Shapes) -> int:
    pattern = re.escape(f"{attention}transformer_blocks.") + r"(\d+)\."
    return len({found[1] for name in shapes if (found := re.match(pattern, name))})


def describe_t2i(path: Path, shapes: Shapes, model: Description) -> ControlFile:
    """Adapters for SDXL see the picture at half of the resolution of the others, and shrink it but once."""
    original = not any(name.startswith("adapter.") for name in shapes)
    names = from_original_t2i(shapes) if original else {name: name for name in shapes}
    ours = {names[name]: shape for name, shape in shapes.items()}
    levels = 1 + max(number_in(r"adapter\.body\.(\d+)\.", name) or 0 for name in ours)
    resnets = 1 + max((number_in(r"adapter\.body\.0\.resnets\.(\d+)\.", name) or 0 for name in ours), default=0)
    light = "adapter.conv_in.weight" not in ours
    downscale = model.vae_scale if light else shrinks_of_unet(model)[0]
    larger = downscale > model.vae_scale
    try:
        last = "out_conv" if light else f"resnets.{resnets - 1}.block2"
        channels = [ours[f"adapter.body.{level}.{last}.weight"][0] for level in range(levels)]
        first = ours["adapter.body.0.in_conv.weight" if light else "adapter.conv_in.weight"][1]
    except (KeyError, IndexError) as error:
        raise CorruptModel(f"{path} is a T2I-Adapter that lacks {error}") from None
    if first % downscale**2:
        raise IncompatibleControl(
            path.name,
            f"it takes {first} input channels per patch, but a patch of the model is {downscale}x{downscale} pixels",
            model=f"{model.path.name} ({model.family.name})",
        )
    config = {
        "_class_name": "T2IAdapter",
        "in_channels": first // downscale**2,
        "channels": channels[:-1] if light else channels,
        "num_res_blocks": resnets,
        "downscale_factor": downscale,
        "adapter_type": "light_adapter" if light else "full_adapter_xl" if larger else "full_adapter",
    }
    return ControlFile(path=path, kind="t2i-adapter", config=config, files=[path], names=names)


def require_fit(found: ControlFile, model: Description, *, name: str, model_name: str) -> None:
    """Raises IncompatibleControl where widths differ, which is all that tells families apart."""
    unet, config = model.unet, found.config

    def refuse(why: str, made_for: str | None = None) -> None:
        raise IncompatibleControl(name, why, model=model_name, made_for=made_for)

    theirs = list(unet["block_out_channels"])
    if found.kind == "t2i-adapter":
        channels, shrinks, needed = widths_of_adapter(config), shrinks_of_adapter(config), shrinks_of_unet(model)
        if channels[: len(theirs)] != theirs[: len(channels)]:
            refuse(f"its blocks have {channels} channels, the model's {theirs}")
        if any(one != other for one, other in zip(shrinks, needed, strict=False)):
            refuse(f"its blocks downsample by {shrinks}, the model's by {needed}")
        return
    width, needed = config.get("cross_attention_dim"), unet.get("cross_attention_dim")
    if width != needed:
        refuse(f"its prompt tokens have width {width}, the model's {needed}", CONTEXT_WIDTHS.get(width or 0))
    if list(config.get("block_out_channels", ())) != theirs:
        refuse(f"its blocks have {list(config.get('block_out_channels', ()))} channels, the model's {theirs}")
    if config.get("addition_embed_type") != unet.get("addition_embed_type"):
        refuse("its conditioning beside the prompt, such as the size, differs from the model's")
    if unet.get("time_embedding_dim") not in (None, 4 * theirs[0]):
        refuse("the model's time embedding has an unusual width, which no ControlNet has")
    hints = config.get("conditioning_embedding_out_channels") or ()
    if 2 ** (len(hints) - 1) != model.vae_scale:
        refuse(f"it downsamples its hint by {2 ** (len(hints) - 1)}, the model's autoencoder by {model.vae_scale}")


def shrinks_of_unet(model: Description) -> list[int]:
    """How many pixels, along one side, a place is at which each block of the UNet takes what an adapter adds."""
    kinds = model.unet["down_block_types"]
    # A block without attention takes it after it has shrunk; the last does not shrink.
    return [
        model.vae_scale * 2 ** (block + ("CrossAttn" not in kind and block < len(kinds) - 1))
        for block, kind in enumerate(kinds)
    ]


def widths_of_adapter(config: Mapping[str, Any]) -> list[int]:
    """A light adapter has a level more than widths, as wide as the last."""
    channels = list(config.get("channels", ()))
    return channels + channels[-1:] if config.get("adapter_type") == "light_adapter" else channels


def shrinks_of_adapter(config: Mapping[str, Any]) -> list[int]:
    first, levels = int(config.get("downscale_factor", 8)), len(widths_of_adapter(config))
    if config.get("adapter_type") == "full_adapter_xl":
        return [first if level < 2 else 2 * first for level in range(levels)]
    return [first * 2**level for level in range(levels)]


def made_for(shapes: Shapes) -> str | None:
    """By the width of the prompt it reads."""
    widths = (shape[-1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    return next((CONTEXT_WIDTHS[width] for width in widths if width in CONTEXT_WIDTHS), None)


def hint_kind(request: ControlRequest, about: ControlFile) -> HintKind | None:
    """What the hint shows, where the net must be told: as the request says, else what its preprocessor makes.

    Raises:
        InvalidRequest: neither says so, or the net does not know that kind.
    """
    known, named = about.hint_kinds, request.hint_kind
    if not known:
        if named:
            raise InvalidRequest(f"{request.model} takes hints of one kind only; it has no hint kind {named!r}")
        return None
    kind = named or PREPROCESSOR_KINDS.get(request.preprocessor.partition("/")[0])
    if kind is None:
        raise InvalidRequest(
            f"{request.model} needs the kind of its hint: set hint_kind (as-KIND on the command line) to one of "
            + ", ".join(known)
        )
    if kind not in known:
        raise InvalidRequest(
            f"{request.model} does not support hints of the kind {kind!r}; it supports {', '.join(known)}"
        )
    return kind
