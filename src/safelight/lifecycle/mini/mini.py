"""All hyperparameters of the embedded model `mini`: data, captions, networks, training."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from safelight.lifecycle.mini.augment import Augmentation


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtworkRecipe:
    size: int = 128
    packages: Mapping[str, str] = field(
        default_factory=lambda: {
            "noto": "@iconify-json/noto@1.2.9",
            "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
            "glossy": "@iconify-json/fluent-emoji@1.2.7",
        }
    )
    keywords_package: str = "emojibase-data@17.0.0"
    core_copies: int = 8
    """Recoloured copies of each picture of a popular concept."""
    other_copies: int = 1
    min_colour_share: float = 0.3
    """A picture is recoloured if its main colour covers at least this much of the drawn area."""
    holdout_share: float = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionRecipe:
    empty: float = 0.1
    name_only: float = 0.7
    name_and_keywords: float = 0.18
    own_colour: float = 0.3
    copy_colour: float = 0.95
    style: float = 0.5
    filler: float = 0.1
    opening: float = 0.3
    background: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRecipe:
    vocabulary: int = 4096
    max_length: int = 32
    width: int = 256
    layers: int = 3
    heads: int = 4
    feed_forward: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderRecipe:
    channels: tuple[int, ...] = (16, 24, 48, 96)
    """Four levels: 128x128 pictures become 16x16 latents, Stable Diffusion's own factor of 8."""
    norm_groups: int = 8
    latent_channels: int = 4
    batch: int = 8
    crop: int = 64
    crop_until: float = 0.7
    gradient_weight: float = 0.5
    colour_weight: float = 2.0
    """Weight of the error of 8x8 means: otherwise a small decoder draws every yellow like the many yellow faces."""
    latent_noise: float = 0.3
    """Largest standard deviation of the noise added to the decoder's latents, whose own is about 1."""
    spread_weight: float = 0.05
    roughness_weight: float = 0.1
    muon_rate: float = 0.02
    adam_rate: float = 2e-3
    ema: float = 0.998
    cooldown: float = 0.4
    background_share: float = 0.3
    copies_on_background: float = 0.35
    """Share of the recoloured copies whose latents are also cached on a background."""
    seed: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserRecipe:
    channels: tuple[int, ...] = (48, 96, 192)
    layers: int = 1
    heads: tuple[int, ...] = (2, 4, 6)
    """Number of heads by level; diffusers calls this attention_head_dim."""
    norm_groups: int = 16
    time_width: int = 256
    pooling_heads: int = 4
    """Heads that pool the text into the time embedding, which scales and shifts every residual block."""
    batch: int = 32
    core_share: float = 0.85
    """Share of the samples that show popular concepts; the rest show the others."""
    copy_share: float = 0.5
    """Share of recoloured copies among the samples of a concept that has any."""
    background_share: float = 0.12
    snr_gamma: float = 5.0
    muon_rate: float = 0.005
    adam_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup: int = 100
    cooldown: float = 1.0
    """Last share of a run with a known end, in which the learning rates fall linearly to zero."""
    ema: float = 0.998
    max_grad_norm: float = 1.0
    save_every_s: float = 120
    grid_every: int = 1000
    """Steps between sample grids."""
    learns_text: bool = True
    """Whether the text encoder is trained too."""
    style_lead: float = 0.0
    """Share of the change of v by a caption's style words that is added to the target, as guidance would. The trained
    change converges to 1 / (1 - style_lead) times the original one."""
    style_lead_below: int = 500
    """Timesteps below which `style_lead` acts; above, where the shapes are decided, the target stays as it is."""
    seed: int = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderRecipe:
    """After the denoiser: training of the decoder on the denoiser's latents."""

    levels: tuple[int, int] = (120, 650)
    """Range of timesteps to which latents are noised; from higher ones, another picture would come back."""
    steps: int = 4
    """Steps in which they are denoised again."""
    made: int = 4800
    """Number of latents made in this way before the training."""
    real_share: float = 0.3
    """Share of the training latents that are real ones with noise instead."""
    slope_weight: float = 2.0
    sharpness: float = 0.5
    """Norm of the discriminator's gradient, as a fraction of the norm of the errors' gradient."""
    sharp_after: int = 200
    """Steps over which that fraction rises from zero."""
    discriminator_width: int = 32
    discriminator_factor: float = 2.0
    """Ratio of its learning rates to the decoder's."""
    batch: int = 8
    muon_rate: float = 0.003
    adam_rate: float = 3e-4
    ema: float = 0.995
    cooldown: float = 0.8
    seed: int = 17


STYLING = DenoiserRecipe(learns_text=False, style_lead=0.6, seed=19)
STYLED_CAPTIONS = CaptionRecipe(style=0.75)
"""After the denoiser: the UNet alone is trained to tell styles apart, since style is a small part of the error."""
IMAGE_ENCODER_CAPTIONS = CaptionRecipe(empty=0.0, name_only=0.75, copy_colour=1.0, style=0.6, background=0.8)
IMAGE_ENCODER_AUGMENTATION = Augmentation(
    shift=0.08,
    turn=0.12,
    zoom=0.15,
    stretch=0.08,
    mirrored=0.3,
    blurred=0.5,
    background=0.05,
    shade=0.1,
    noise=0.04,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEncoderRecipe:
    side: int = 96
    patch: int = 16
    width: int = 192
    layers: int = 4
    heads: int = 3
    projection: int = 256
    captions: CaptionRecipe = IMAGE_ENCODER_CAPTIONS
    how: Augmentation = IMAGE_ENCODER_AUGMENTATION
    batch: int = 64
    together: int = 4
    """Pictures of one concept in a batch, if it has that many."""
    popular_share: float = 0.6
    """Share of a batch's concepts that are sampled from the popular ones only."""
    named_backgrounds: float = 0.15
    muon_rate: float = 0.01
    adam_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 50
    cooldown: float = 1.0
    ema: float = 0.99
    report_every: int = 250
    save_every_s: float = 120
    seed: int = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniRecipe:
    artwork: ArtworkRecipe = ArtworkRecipe()
    captions: CaptionRecipe = CaptionRecipe()
    text: TextRecipe = TextRecipe()
    autoencoder: AutoencoderRecipe = AutoencoderRecipe()
    denoiser: DenoiserRecipe = DenoiserRecipe()
    styling: DenoiserRecipe = STYLING
    styled_captions: CaptionRecipe = STYLED_CAPTIONS
    decoder: DecoderRecipe = DecoderRecipe()
    image_encoder: ImageEncoderRecipe = ImageEncoderRecipe()
    defaults: Mapping[str, str | float] = field(
        default_factory=lambda: {"sampler": "DDIM", "steps": 20, "guidance": 3.0, "guidance_rescale": 0.7}
    )
    """The model's defaults for sampling."""


MINI = MiniRecipe()
