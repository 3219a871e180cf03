"""The families of Stable Diffusion, and how they differ.

| family | text encoders | prediction | made for |
|---|---|---|---|
| sd1  | CLIP ViT-L              | epsilon        | 512 |
| sd2  | OpenCLIP ViT-H          | epsilon or v   | 512, 768 |
| sdxl | CLIP ViT-L + OpenCLIP G | epsilon        | 1024 |
| sdxl-refiner | OpenCLIP G      | epsilon        | 1024, from images or from SDXL's partly denoised latents |
| sd3  | both of SDXL's, and T5  | flow           | 1024 |
| flux | CLIP ViT-L and T5       | flow           | 1024 |

The first four are UNets, and so are variations (`variation`): Stable Diffusion 1 conditioned by CLIP's image encoder
in place of a text encoder. The others are transformers (MMDiT, arXiv:2403.03206) that read T5's states.

A family decides how prompts are encoded and the network's other conditioning; sizes, channels and the schedule's
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
    """Folder names of its CLIP text encoders, in the order their states are concatenated."""
    penultimate: bool = False
    """Prompt states are taken from the layer before the last, without the final norm."""
    size_conditioned: bool = False
    """The network is conditioned on the image size."""
    score_conditioned: bool = False
    """It is conditioned on an aesthetic score in place of the target size."""
    default_side: int
    network: Literal["unet", "transformer"] = "unet"
    """The folder of the denoising network."""
    t5: str = ""
    """The folder of its T5 text encoder."""
    t5_tokens: int = 0
    """T5's sequence length; shorter prompts are padded, and the network attends to the padding."""
    t5_alone: bool = False
    """Cross-attention reads T5's states only; from CLIP the network takes the pooled output alone."""
    image_conditioned: bool = False
    """Conditioned on CLIP's embedding of an image, with no prompt."""
    step_spacing: StepSpacing = field(default_factory=StepSpacing)


FAMILIES: dict[FamilyName, Family] = {
    "sd1": Family(name="sd1", text_encoders=("text_encoder",), default_side=512),
    "sd2": Family(name="sd2", text_encoders=("text_encoder",), default_side=768),
    "sdxl": Family(
        name="sdxl",
        text_encoders=("text_encoder", "text_encoder_2"),
        penultimate=True,
        size_conditioned=True,
        default_side=1024,
    ),
    "sdxl-refiner": Family(
        name="sdxl-refiner",
        text_encoders=("text_encoder_2",),
        penultimate=True,
        size_conditioned=True,
        score_conditioned=True,
        default_side=1024,
    ),
    "variation": Family(name="variation", text_encoders=(), default_side=512, image_conditioned=True),
    "sd3": Family(
        name="sd3",
        text_encoders=("text_encoder", "text_encoder_2"),
        penultimate=True,
        default_side=1024,
        network="transformer",
        t5="text_encoder_3",
        t5_tokens=256,
        step_spacing=StepSpacing(rounds_up=True),
    ),
    "flux": Family(
        name="flux",
        text_encoders=("text_encoder",),
        default_side=1024,
        network="transformer",
        t5="text_encoder_2",
        t5_tokens=512,
        t5_alone=True,
        step_spacing=StepSpacing(rounds_up=True, evenly=True),
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
