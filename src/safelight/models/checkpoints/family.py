"""The kinds of Stable Diffusion there are, and what sets them apart.

| family | text encoders | prediction | made for |
|---|---|---|---|
| sd1  | CLIP ViT-L              | epsilon        | 512 |
| sd2  | OpenCLIP ViT-H          | epsilon or v   | 512, 768 |
| sdxl | CLIP ViT-L + OpenCLIP G | epsilon        | 1024 |
| sdxl-refiner | OpenCLIP G      | epsilon        | 1024, from pictures or from where SDXL left off |
| sd3  | both of SDXL's, and T5  | flow           | 1024 |
| flux | CLIP ViT-L and T5       | flow           | 1024 |

The first three are UNets, and so are variations (`variation`): Stable Diffusion 1 told by CLIP's image encoder in place
of a text encoder. The others are transformers (MMDiT, arXiv:2403.03206) that read T5's states.

A family decides how prompts are encoded and what else the network is told; sizes, channels and the schedule's
constants are read from the checkpoint (`families.py`).
"""

from dataclasses import dataclass, field
from typing import Literal

from safelight.diffusion.schedules import StepSpacing

FamilyName = Literal["sd1", "sd2", "sdxl", "sdxl-refiner", "variation", "sd3", "flux"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    name: FamilyName
    text_encoders: tuple[str, ...]
    """Folder names of its CLIPs, in the order their states are joined."""
    penultimate: bool = False
    """Prompts are read from the layer before the last, without the final norm."""
    told_size: bool = False
    """The network is told the picture's size."""
    told_score: bool = False
    """In place of a part of that, how beautiful the picture is."""
    default_side: int
    network: Literal["unet", "transformer"] = "unet"
    """The folder of what denoises."""
    t5: str = ""
    """The folder of the T5 that reads the prompt too."""
    t5_tokens: int = 0
    """How many tokens of a prompt it reads; shorter ones are padded, for the network reads the padding as well."""
    t5_alone: bool = False
    """The network reads T5's states; of CLIP it takes the summary of the prompt and no more."""
    reads_picture: bool = False
    """Told what CLIP sees in a picture, and no words."""
    pace: StepSpacing = field(default_factory=StepSpacing)


FAMILIES: dict[FamilyName, Family] = {
    "sd1": Family(name="sd1", text_encoders=("text_encoder",), default_side=512),
    "sd2": Family(name="sd2", text_encoders=("text_encoder",), default_side=768),
    "sdxl": Family(
        name="sdxl",
        text_encoders=("text_encoder", "text_encoder_2"),
        penultimate=True,
        told_size=True,
        default_side=1024,
    ),
    "sdxl-refiner": Family(
        name="sdxl-refiner",
        text_encoders=("text_encoder_2",),
        penultimate=True,
        told_size=True,
        told_score=True,
        default_side=1024,
    ),
    "variation": Family(name="variation", text_encoders=(), default_side=512, reads_picture=True),
    "sd3": Family(
        name="sd3",
        text_encoders=("text_encoder", "text_encoder_2"),
        penultimate=True,
        default_side=1024,
        network="transformer",
        t5="text_encoder_3",
        t5_tokens=256,
        pace=StepSpacing(rounds_up=True),
    ),
    "flux": Family(
        name="flux",
        text_encoders=("text_encoder",),
        default_side=1024,
        network="transformer",
        t5="text_encoder_2",
        t5_tokens=512,
        t5_alone=True,
        pace=StepSpacing(rounds_up=True, evenly=True),
    ),
}

PIPELINES: dict[str, tuple[FamilyName, ...]] = {
    "StableDiffusionPipeline": ("sd1", "sd2"),
    "StableDiffusionImg2ImgPipeline": ("sd1", "sd2"),
    "StableDiffusionInpaintPipeline": ("sd1", "sd2"),
    "LatentConsistencyModelPipeline": ("sd1", "sd2"),
    "StableDiffusionInstructPix2PixPipeline": ("sd1", "sd2"),
    "StableDiffusionImageVariationPipeline": ("variation",),
    "StableDiffusionXLPipeline": ("sdxl",),
    "StableDiffusionXLImg2ImgPipeline": ("sdxl", "sdxl-refiner"),
    "StableDiffusionXLInpaintPipeline": ("sdxl",),
    "StableDiffusionXLInstructPix2PixPipeline": ("sdxl",),
    "StableDiffusion3Pipeline": ("sd3",),
    "StableDiffusion3Img2ImgPipeline": ("sd3",),
    "StableDiffusion3InpaintPipeline": ("sd3",),
    "FluxPipeline": ("flux",),
    "FluxImg2ImgPipeline": ("flux",),
    "FluxInpaintPipeline": ("flux",),
}
