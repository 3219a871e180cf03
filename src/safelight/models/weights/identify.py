"""Identify a safetensors file from its header alone: tensor names, shapes, and metadata.

| kind       | identified by                                                        |
|------------|----------------------------------------------------------------------|
| checkpoint | `model.diffusion_model.` beside other parts, or such a network alone |
| lora       | `lora_down`, `lora_A`, `hada_w1`, `lokr_w1`, ...                     |
| controlnet | `control_model.`, `controlnet_cond_embedding.`                       |
| t2i-adapter| `adapter.conv_in`, or `body.0.` with `conv_in`                       |
| ip-adapter | `ip_adapter.` and `image_proj.`                                      |
| vae        | an encoder and a decoder, and nothing else                           |
| embedding  | a few rows as wide as a text encoder                                 |
| upscaler   | the blocks of ESRGAN and its relatives                               |
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from safelight.models.weights.safetensors_file import Header

Kind = Literal["checkpoint", "vae", "lora", "embedding", "controlnet", "t2i-adapter", "ip-adapter", "upscaler"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Base = Literal["sd1", "sd2", "sdxl", "sdxl-refiner", "sd3", "flux", ""]
"""The family it belongs to; empty if unknown."""
Prediction = Literal["epsilon", "v_prediction", ""]

TITLES: Mapping[str, str] = {
    "sd1": "Stable Diffusion 1",
    "sd2": "Stable Diffusion 2",
    "sdxl": "SDXL",
    "sdxl-refiner": "SDXL refiner",
    "sd3": "Stable Diffusion 3",
    "flux": "Flux",
    "": "an unknown family",
}
UNET = "model.diffusion_model."
LORA = re.compile(
    r"\.(lora_down|lora_up|lora_A|lora_B|lora\.down|lora\.up|lora_mid)\.|\.(hada_w1|lokr_w1|oft_|dora_scale)"
)
CONTROL = ("control_model.", "controlnet_cond_embedding.", "input_hint_block.", "lllite_")
ORIGINAL = ("double_blocks.", "joint_blocks.", "input_blocks.")
"""Name prefixes in a file of only the network, as written by the original code and ComfyUI."""
BLOCKS, ENDS = ("transformer_blocks.", "single_transformer_blocks.", "down_blocks."), ("proj_out.bias", "conv_out.bias")
"""And as written by diffusers."""
UPSCALER = re.compile(
    r"^(params(_ema)?\.)?(model\.1\.sub\.|conv_first\.|body\.\d+\.rdb\d|RRDB_trunk\.|layers\.\d+\.residual_group)"
)
T2I = re.compile(r"body\.\d+\.(block\d|in_conv|resnets)")
"""diffusers' files have the prefix `adapter.`, the authors' have none."""
UNSHUFFLED_CHANNELS: Mapping[int, Base] = {64 * 3: "sd1", 256 * 3: "sdxl", 64: "sd1", 256: "sdxl"}
"""Input channels of a T2I-Adapter: the image, colour or grey, pixel-unshuffled by 8 or 16."""
IMAGE_KEYS = re.compile(r"ip_adapter\.\d+\.to_k_ip\.weight")
EMBEDDING_NAMES = ("emb_params", "clip_l", "clip_g", "string_to_param")
MAX_EMBEDDING_TENSORS = 4
CONTEXT_WIDTHS: Mapping[int, Base] = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
"""The cross-attention width identifies the family, also in a file that changes only the network."""
CONTEXT_READER = re.compile(r"attn2[._]to_[kv][._]")
TRAINED_ON: Mapping[str, Base] = {
    "sdxl": "sdxl",
    "sd_xl": "sdxl",
    "stable-diffusion-xl": "sdxl",
    "sd3": "sd3",
    "stable-diffusion-v3": "sd3",
    "flux": "flux",
    "v2": "sd2",
    "v1": "sd1",
}
"""Trainers' names of the base in the metadata (`ss_base_model_version`, `modelspec.architecture`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    kind: Kind
    base: Base = ""
    prediction: Prediction = ""
    inpaints: bool = False
    """Whether the network also takes a mask and the masked image."""
    edits: bool = False
    """Whether the network also takes an image, to edit it by instructions."""

    def __str__(self) -> str:
        return f"{self.kind} {'of' if self.kind == 'checkpoint' else 'for'} {TITLES[self.base]}"


def identify(header: Header) -> Identity | None:
    """Return what the file is; None if it is no kind of Stable Diffusion file."""
    kind = kind_of(header)
    if kind is None:
        return None
    base = base_of(header, kind)
    prediction = prediction_of(header, kind, base)
    [channels] = (header.shape(f"{UNET}input_blocks.0.0.weight")[1:2] if kind == "checkpoint" else ()) or (0,)
    return Identity(kind=kind, base=base, prediction=prediction, inpaints=channels == 9, edits=channels == 8)


def kind_of(header: Header) -> Kind | None:
    names = header.tensors.keys()
    if any(LORA.search(name) for name in names):
        return "lora"
    if any(name.startswith(CONTROL) for name in names):
        return "controlnet"
    if any(name.startswith("ip_adapter.") for name in names) and any(name.startswith("image_proj.") for name in names):
        return "ip-adapter"
    if "adapter.conv_in.weight" in names or ("conv_in.weight" in names and any(map(T2I.match, names))):
        return "t2i-adapter"
    if any(name.startswith((UNET, *ORIGINAL)) for name in names):
        return "checkpoint"
    if not names.isdisjoint(ENDS) and any(name.startswith(BLOCKS) for name in names):
        return "checkpoint"
    stems = {name.removeprefix("first_stage_model.").split(".")[0] for name in names}
    if {"encoder", "decoder"} <= stems and any(name.endswith("decoder.conv_in.weight") for name in names):
        return "vae"
    if any(UPSCALER.match(name) for name in names):
        return "upscaler"
    if 0 < len(names) <= MAX_EMBEDDING_TENSORS and embedding_widths(header):
        return "embedding"
    return None


def embedding_widths(header: Header) -> set[int]:
    """Return the widths of its rows, if every tensor is a few rows as wide as a text encoder's embeddings."""
    shapes = [entry.shape for entry in header.tensors.values()]
    rows = all(1 <= len(shape) <= 2 and shape[-1] in (768, 1024, 1280) for shape in shapes)
    named = any(name.startswith(EMBEDDING_NAMES) or name.startswith("<") for name in header.tensors)
    few = all(len(shape) == 1 or shape[0] <= 128 for shape in shapes)
    return {shape[-1] for shape in shapes} if rows and (named or (few and len(shapes) == 1)) else set()


def base_of(header: Header, kind: Kind) -> Base:
    names = header.tensors.keys()

    def has(*starts: str) -> bool:
        return any(name.startswith(starts) for name in names)

    if has(
        "double_blocks.",
        "single_transformer_blocks.",
        f"{UNET}double_blocks.",
        "lora_unet_double_blocks",
        "transformer.single_transformer_blocks",
        "lora_transformer_single_transformer_blocks",
    ):
        return "flux"
    if has(
        "joint_blocks.", "pos_embed.", f"{UNET}joint_blocks.", "lora_unet_joint_blocks", "lora_te3_", "text_encoder_3."
    ):
        return "sd3"
    if has("conditioner.embedders.1.", "lora_te2_", "text_encoder_2."):
        return "sdxl"
    if has("conditioner.embedders.0.model."):
        return "sdxl-refiner"
    if has("cond_stage_model.model."):
        return "sd2"
    if has("cond_stage_model.transformer."):
        return "sd1"
    if kind == "embedding":
        widths = embedding_widths(header)
        return "sdxl" if 1280 in widths else CONTEXT_WIDTHS[max(widths)]
    if kind == "t2i-adapter":
        shape = header.shape("adapter.conv_in.weight") or header.shape("conv_in.weight")
        return UNSHUFFLED_CHANNELS.get(shape[1], "") if len(shape) == 4 else ""
    for name in names:
        # A scalar, such as a LoRA's alpha, has no width.
        width = header.shape(name)[-1:]
        if width and width[0] in CONTEXT_WIDTHS and (CONTEXT_READER.search(name) or IMAGE_KEYS.match(name)):
            return CONTEXT_WIDTHS[width[0]]
    return base_in_metadata(header.metadata)


def base_in_metadata(metadata: Mapping[str, str]) -> Base:
    stated = metadata.get("modelspec.architecture", metadata.get("ss_base_model_version", "")).lower()
    bases: list[Base] = [base for label, base in TRAINED_ON.items() if label in stated]
    return bases[0] if bases else ""


def prediction_of(header: Header, kind: Kind, base: Base) -> Prediction:
    """Return the prediction in the metadata; else v for Stable Diffusion 2, unless it inpaints, and epsilon otherwise.

    The 512-pixel Stable Diffusion 2 also predicts epsilon, which only the metadata shows: all shapes are the same.
    """
    stated = header.metadata.get("modelspec.prediction_type", "").lower()
    architecture = header.metadata.get("modelspec.architecture", "")
    if stated in ("v", "v_prediction", "v-prediction") or "v_pred" in header.tensors:
        return "v_prediction"
    if stated == "epsilon" or architecture.endswith("v2-512"):
        return "epsilon"
    if kind != "checkpoint" or base in ("sd3", "flux", ""):
        return ""
    inpaints = header.shape(f"{UNET}input_blocks.0.0.weight")[1:2] == (9,)
    return "v_prediction" if base == "sd2" and not inpaints else "epsilon"
