"""A checkpoint without its weights: the names and shapes of its networks, and the words that it knows.

Enough to say whether something fits it, before anything of it is in memory.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from safelight.models.checkpoints.families import Description
from safelight.models.hooks.perturbed import Perturbations
from safelight.models.networks.networks import denoiser_class, network_classes, transformer_classes
from safelight.models.networks.parts import open_parts
from safelight.models.networks.tokenize import Tokenizer
from safelight.models.weights.lora_file import Part


@dataclass(frozen=True, eq=False)
class Outline:
    name: str
    description: Description

    @cached_property
    def networks(self) -> dict[Part, nn.Module]:
        """What denoises, and all that reads the prompt; on no device."""
        about, classes = self.description, network_classes()
        networks: dict[Part, nn.Module] = {"unet": denoiser_class(about.family.name)(about.unet)}
        for part in about.readers:
            make = transformer_classes().t5 if part == about.t5 else classes.text_encoder
            networks[part] = make(about.configuration(part))
        return networks

    @property
    def unet(self) -> Any:
        return self.networks["unet"]

    @property
    def perturbed(self) -> Perturbations:
        return Perturbations(self.unet)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Of the first text encoder; the others cut a prompt into the same chunks."""
        return open_parts(self.description).tokenizer(self.description.family.text_encoders[0])

    @property
    def num_layers(self) -> int:
        """Of the shallowest text encoder that `clip_skip` counts in."""
        about = self.description
        return min(int(about.configuration(part).get("num_hidden_layers", 12)) for part in about.family.text_encoders)
