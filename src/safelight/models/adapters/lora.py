"""A LoRA file made ready for one model: which layers it changes and how, on the model's device.

    path -> LoraFile (lora_file.py) -> terms for each layer (lora_arithmetic.py) -> Lora
                                                        names: lora_names.py

What the file holds for layers that the model has not is listed in `unmatched`, and never passed over in silence.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from safelight.errors import CorruptModel, IncompatibleLora
from safelight.models.adapters.lora_arithmetic import DoesNotFit, apart, fused, terms_of
from safelight.models.hooks.adapters import Adapter
from safelight.models.hooks.lora_names import Names, denoiser_names, flat, layers_of, text_names
from safelight.models.hooks.lora_terms import Dense, Gain, Kronecker, LowRank, Term
from safelight.models.networks.load import Model
from safelight.models.networks.placement import Placement
from safelight.models.weights.lora_file import T5, LoraFile, Part, Target, read_lora

log = logging.getLogger(__name__)
CONTEXT_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""The width of the prompt that a family's UNet reads."""
OTHER_NETWORKS = {
    "double_blocks": "Flux",
    "single_transformer_blocks": "Flux",
    "joint_blocks": "Stable Diffusion 3",
    "joint_attn": "Stable Diffusion 3",
    "transformer_blocks_0_attn_add": "Stable Diffusion 3",
}


@dataclass(frozen=True, slots=True, eq=False)
class Lora:
    name: str
    digest: str
    unet: Adapter
    text_encoders: tuple[Adapter, ...]
    """One for each text encoder of the model, in its order; T5 is the last."""
    unmatched: tuple[str, ...] = ()
    """Keys of the file that are for nothing in this model."""

    @property
    def size_bytes(self) -> int:
        return sum(adapter.size_bytes for adapter in (self.unet, *self.text_encoders))


def load_lora(path: Path, model: Model, *, name: str, digest: str) -> Lora:
    """Read a LoRA for this model; warns of keys that it has no place for.

    Raises:
        UnsafeFile, CorruptModel: the file is a pickle, or damaged.
        IncompatibleLora: nothing in it is for this model, or its shapes are another family's.
    """
    file = read_lora(path)
    networks: dict[Part, nn.Module] = {"unet": model.unet}
    networks |= {part: reader.network for part, reader in model.prompt_encoders.items()}
    fitted, unmatched = fit(file, networks, name=name, model=f"{model.name} ({model.description.family.name})")
    if unmatched:
        log.warning(
            "LoRA %s: %d of its keys match no layer of %s, the first is %s; `safelight lora show` lists them",
            name,
            len(unmatched),
            model.name,
            unmatched[0],
        )
    unet, *encoders = (Adapter(placed(terms, model.placement)) for terms in fitted.values())
    return Lora(name, digest, unet, tuple(encoders), tuple(unmatched))


Fitted = dict[Part, dict[str, tuple[Term, ...]]]


def fit(file: LoraFile, networks: Mapping[Part, nn.Module], *, name: str, model: str) -> tuple[Fitted, tuple[str, ...]]:
    """The terms by network and path, and the keys that no network has a layer for."""
    names = {part: (denoiser_names if part == "unet" else text_names)(network) for part, network in networks.items()}
    layers = {part: layers_of(network) for part, network in networks.items()}
    fitted: Fitted = {part: {} for part in networks}
    unmatched = list(file.unknown_keys)
    for target, tensors in file.layers.items():
        part, paths = find_layers(target, names)
        if not paths:
            unmatched += file.keys[target]
            continue
        scale = None if "alpha" in tensors else file.scale(target)
        meant = [layers[part][path] for path in paths]
        try:
            terms = terms_of(tensors, fused(meant), scale=scale)
        except DoesNotFit as error:
            where = " and ".join(f"{part}.{path}" for path in paths)
            raise IncompatibleLora(name, f"{where} is {error}", model=model, made_for=family_of(file)) from None
        except CorruptModel as error:
            raise CorruptModel(f"LoRA {name}: {target.name}: {error}") from None
        for path, own in zip(paths, apart(terms, meant), strict=True):
            fitted[part][path] = (*fitted[part].get(path, ()), *own)
    # A family's text encoder is also another's, so a file is only as good as its part for the UNet.
    for_unet = any(target.part == "unet" for target in file.layers)
    if not any(fitted.values()) or (for_unet and not fitted["unet"]):
        what = "the model has none of its layers" if file.layers else "there is no LoRA in the file"
        raise IncompatibleLora(name, what, model=model, made_for=family_of(file))
    return fitted, tuple(unmatched)


def find_layers(target: Target, names: Mapping[Part, Names]) -> tuple[Part, tuple[str, ...]]:
    said = "text_encoder_2" if target.part == T5 and T5 not in names else target.part
    for part in [said] if said else names:
        if paths := names.get(part, {}).get(flat(target.name)):
            return part, paths
    return target.part, ()


def family_of(file: LoraFile) -> str | None:
    """The family the file seems made for; None where nothing gives it away."""
    named = {flat(target.name): tensors for target, tensors in file.layers.items()}
    for words, family in OTHER_NETWORKS.items():
        if any(words in name for name in (*named, *file.unknown_keys)):
            return family
    widths: Counter[int] = Counter()
    for name, tensors in named.items():
        if name.endswith(("attn2_to_k", "attn2_to_v")):
            widths.update(tensors[key].shape[-1] for key in ("down", "hada_w1_b") if key in tensors)
    for width, _ in widths.most_common():
        if width in CONTEXT_WIDTHS:
            return CONTEXT_WIDTHS[width]
    if any(target.part == "text_encoder_2" for target in file.layers):
        return "sdxl"
    base = file.metadata.get("modelspec.architecture", "") + file.metadata.get("ss_base_model_version", "")
    hints = {"stable-diffusion-xl": "sdxl", "sdxl": "sdxl", "diffusion-v1": "sd1", "sd_v1": "sd1", "sd_v2": "sd2"}
    return next((family for hint, family in hints.items() if hint in base), None)


def placed(terms: Mapping[str, tuple[Term, ...]], placement: Placement) -> dict[str, tuple[Term, ...]]:
    def to(tensor: torch.Tensor) -> torch.Tensor:
        # A copy: a file that is mapped into memory may be overwritten under us.
        return tensor.contiguous().to(placement.device, placement.dtype, copy=True)

    def move(term: Term) -> Term:
        match term:
            case LowRank(down=down, up=up):
                return LowRank(to(down), to(up))
            case Kronecker(left=left, right=right):
                return Kronecker(to(left), to(right))
            case Gain(gain=gain):
                return Gain(to(gain))
            case Dense(weight=weight):
                return Dense(to(weight))

    return {path: tuple(map(move, several)) for path, several in terms.items()}
