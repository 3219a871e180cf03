"""A single-file checkpoint in the original layout: where its parts are, and their configurations.

    header -> identify -> configurations of each part (`configurations.py`) -> tensors by their diffusers names

The schedule and the latents' scale are in no tensor; they are the same in every checkpoint of a family, and are in the
tables below. Weights of an exponential moving average (`model_ema.`) are ignored, as in other programs: in merged
checkpoints they are those of one parent, and so outdated.
"""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from safelight.errors import CorruptModel, UnsupportedOption
from safelight.models.weights.configurations import (
    FLUX_GUIDANCE,
    SIZE_CONDITIONED,
    XL_SAMPLE_SIZE,
    Configuration,
    MissingTensors,
    Shapes,
    TextPart,
    clip_configuration,
    flux_configuration,
    open_clip_configuration,
    sd3_configuration,
    t5_configuration,
    unet_configuration,
    vae_configuration,
)
from safelight.models.weights.identify import TITLES, UNET, Base, Identity, identify
from safelight.models.weights.safetensors_file import Header, read_header

VAES = VAE, VAE_OF_FLUX = "first_stage_model.", "vae."
"""Name prefixes of the autoencoder's tensors."""
EMA = "model_ema."
T5 = "text_encoders.t5xxl.transformer."
"""Some files of Stable Diffusion 3 have no T5, and work without it."""

BETAS: Configuration = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
FLOW: Configuration = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
EULER: Configuration = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", **BETAS}
SCHEDULERS: Mapping[str, Configuration] = {
    "sd1": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **BETAS},
    "sd2": {"_class_name": "DDIMScheduler", **BETAS},
    "sdxl": EULER,
    "sdxl-refiner": EULER,
    "sd3": {**FLOW, "shift": 3.0},
    "flux": {**FLOW, "shift": 1.0},
}
SHIFTING: Configuration = {
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
"""For Flux with a guidance input (dev); without (schnell), noise levels are not shifted."""
SCALING_FACTORS = {
    "sd1": 0.18215,
    "sd2": 0.18215,
    "sdxl": 0.13025,
    "sdxl-refiner": 0.13025,
    "sd3": 1.5305,
    "flux": 0.3611,
}
"""Factors that latents are multiplied by, so that their standard deviation is about 1."""
SHIFT_FACTORS = {"sd3": 0.0609, "flux": 0.1159}
"""Offsets subtracted from latents before scaling."""
SAMPLE_SIZES = {("sd1", "epsilon"): 64, ("sd2", "epsilon"): 64, ("sd2", "v_prediction"): 96}
T5_WORDS = 32_128
"""Rows of T5's embedding: those of its tokenizer, and a few more."""


TEXT_PARTS: Mapping[str, Mapping[str, TextPart]] = {
    "sd1": {"text_encoder": TextPart("cond_stage_model.transformer.", open_clip=False)},
    "sd2": {"text_encoder": TextPart("cond_stage_model.model.", open_clip=True, unused_layers=1)},
    "sdxl": {
        "text_encoder": TextPart("conditioner.embedders.0.transformer.", open_clip=False),
        "text_encoder_2": TextPart("conditioner.embedders.1.model.", open_clip=True, has_projection=True),
    },
    "sdxl-refiner": {
        "text_encoder_2": TextPart("conditioner.embedders.0.model.", open_clip=True, has_projection=True),
    },
    "sd3": {
        "text_encoder": TextPart("text_encoders.clip_l.transformer.", open_clip=False, has_projection=True),
        "text_encoder_2": TextPart(
            "text_encoders.clip_g.transformer.", open_clip=True, has_projection=True, transformers_names=True
        ),
    },
    "flux": {"text_encoder": TextPart("text_encoders.clip_l.transformer.", open_clip=False)},
}
T5_PARTS = {"sd3": "text_encoder_3", "flux": "text_encoder_2"}
"""T5's folder in a diffusers checkpoint."""
PIPELINES = {
    "sd1": "StableDiffusion",
    "sd2": "StableDiffusion",
    "sdxl": "StableDiffusionXL",
    "sdxl-refiner": "StableDiffusionXLImg2Img",
    "sd3": "StableDiffusion3",
    "flux": "Flux",
}
"""Prefixes of diffusers' pipeline names."""


def read_configurations(path: Path) -> dict[str, Configuration]:
    """Return the configurations of this checkpoint's diffusers folder, by part; `model_index` also names the family.

    Raises:
        UnsafeFile, CorruptModel: as `read_header`; or the file lacks a required part.
        UnsupportedOption: another kind of file, or a family that is not supported as a single file.
    """
    header = read_header(path)
    identity = identify(header)
    if identity is None:
        raise UnsupportedOption("model", f"{path} holds none of the tensors of a Stable Diffusion checkpoint")
    if identity.kind != "checkpoint":
        raise UnsupportedOption("model", f"{path} is a {identity}; a model needs a complete checkpoint")
    is_network = [name.startswith(UNET) for name in header.tensors]
    network_only = not any(is_network) or all(is_network)
    if identity.base not in SCHEDULERS or network_only:
        why = (
            "it holds the network alone, without an autoencoder and text encoders"
            if network_only
            else f"single files are supported for {', '.join(map(title_of, SCHEDULERS))}"
        )
        raise UnsupportedOption(
            "model",
            f"{path} is a {identity}, and {why}. Get a file that includes them, or join it with the other parts of a "
            f"diffusers folder of its family: `safelight models join {shlex.quote(str(path))} FOLDER`",
        )
    if "edm_mean" in header.tensors:
        raise UnsupportedOption("model", f"{path} was trained as EDM (Playground 2.5); use its diffusers folder")
    try:
        return dict(derive(header, identity))
    except MissingTensors as missing:
        raise CorruptModel(f"{path} lacks {missing}") from None


def title_of(base: str) -> str:
    return TITLES[base]


def derive(header: Header, identity: Identity) -> Iterator[tuple[str, Configuration]]:
    family, prediction = identity.base, identity.prediction
    task = "Inpaint" if identity.inpaints else "InstructPix2Pix" if identity.edits else ""
    t5, network = Shapes(header, T5), Shapes(header, UNET)
    index: Configuration = {"_class_name": f"{PIPELINES[family]}{task}Pipeline", "family": family}
    if t5.shapes:
        index[T5_PARTS[family]] = ["transformers", "T5EncoderModel"]
        yield T5_PARTS[family], t5_configuration(t5)
    elif family == "flux":
        raise MissingTensors(f"T5 ({T5}), the only encoder Flux attends to: get a file that includes its text encoders")
    yield "model_index", index
    match family:
        case "sd3":
            yield "transformer", sd3_configuration(network)
        case "flux":
            yield "transformer", flux_configuration(network)
        case _:
            yield "unet", unet_configuration(network, family) | {"sample_size": sample_size(family, prediction)}
    shift = {"shift_factor": SHIFT_FACTORS[family]} if family in SHIFT_FACTORS else {}
    vae = Shapes(header, vae_prefix(header.tensors))
    yield "vae", vae_configuration(vae) | {"scaling_factor": SCALING_FACTORS[family], **shift}
    scheduler = SCHEDULERS[family] | ({"prediction_type": prediction} if prediction else {})
    if family == "flux" and FLUX_GUIDANCE in network:
        scheduler |= SHIFTING
    if "ztsnr" in header.tensors:  # ComfyUI's marker of zero terminal SNR, an empty tensor
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    yield "scheduler", scheduler
    for name, part in TEXT_PARTS[family].items():
        shapes = Shapes(header, part.prefix)
        if not shapes.shapes:
            raise MissingTensors(f"a text encoder ({part.prefix}): get a file that includes its text encoders")
        make_config = open_clip_configuration if part.has_open_clip_names else clip_configuration
        yield name, make_config(shapes, part)


def vae_prefix(names: Iterable[str]) -> str:
    """Return the name prefix of the autoencoder's tensors."""
    return VAE_OF_FLUX if any(name.startswith(f"{VAE_OF_FLUX}decoder.") for name in names) else VAE


def text_prefixes(family: str, *, t5: bool) -> list[str]:
    """Return the name prefixes of the text encoders' tensors."""
    return [*(part.prefix for part in TEXT_PARTS[family].values()), *([T5] if t5 else [])]


def sample_size(family: Base, prediction: str) -> int:
    return SAMPLE_SIZES.get((family, prediction), XL_SAMPLE_SIZE if family in SIZE_CONDITIONED else 64)
