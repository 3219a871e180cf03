"""A single-file checkpoint in the original layout: what its configuration files would say, and where its parts are.

    header -> recognise -> configurations of each part (`configurations.py`) -> tensors by their diffusers names

The schedule and the latents' scale show in no tensor; they are the same in every checkpoint of a family, and stand in
the tables below. Weights of an exponential moving average (`model_ema.`) are left alone, as other programs
do: checkpoints that were merged carry those of one parent, and so stale ones.
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
"""How the names of the autoencoder's tensors begin."""
EMA = "model_ema."
T5 = "text_encoders.t5xxl.transformer."
"""Some files of Stable Diffusion 3 leave it out, and are drawn without it."""

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
"""Of Flux where it is told its guidance (dev); where it is not (schnell), noise levels are as they are."""
SCALING_FACTORS = {
    "sd1": 0.18215,
    "sd2": 0.18215,
    "sdxl": 0.13025,
    "sdxl-refiner": 0.13025,
    "sd3": 1.5305,
    "flux": 0.3611,
}
"""What latents are multiplied by, so that their standard deviation is about 1."""
SHIFT_FACTORS = {"sd3": 0.0609, "flux": 0.1159}
"""What is taken off latents before they are scaled."""
SAMPLE_SIZES = {("sd1", "epsilon"): 64, ("sd2", "epsilon"): 64, ("sd2", "v_prediction"): 96}
T5_WORDS = 32_128
"""That T5 has rows for: those of its tokenizer, and a few more."""


TEXT_PARTS: Mapping[str, Mapping[str, TextPart]] = {
    "sd1": {"text_encoder": TextPart("cond_stage_model.transformer.", open_clip=False)},
    "sd2": {"text_encoder": TextPart("cond_stage_model.model.", open_clip=True, unread_layers=1)},
    "sdxl": {
        "text_encoder": TextPart("conditioner.embedders.0.transformer.", open_clip=False),
        "text_encoder_2": TextPart("conditioner.embedders.1.model.", open_clip=True, projects=True),
    },
    "sdxl-refiner": {
        "text_encoder_2": TextPart("conditioner.embedders.0.model.", open_clip=True, projects=True),
    },
    "sd3": {
        "text_encoder": TextPart("text_encoders.clip_l.transformer.", open_clip=False, projects=True),
        "text_encoder_2": TextPart("text_encoders.clip_g.transformer.", open_clip=True, projects=True, renamed=True),
    },
    "flux": {"text_encoder": TextPart("text_encoders.clip_l.transformer.", open_clip=False)},
}
T5_PARTS = {"sd3": "text_encoder_3", "flux": "text_encoder_2"}
"""The folder that T5 would be in."""
PIPELINES = {
    "sd1": "StableDiffusion",
    "sd2": "StableDiffusion",
    "sdxl": "StableDiffusionXL",
    "sdxl-refiner": "StableDiffusionXLImg2Img",
    "sd3": "StableDiffusion3",
    "flux": "Flux",
}
"""How the names of diffusers' pipelines begin."""


def read_configurations(path: Path) -> dict[str, Configuration]:
    """What a diffusers folder of this checkpoint would say, by part; `model_index` also names the family.

    Raises:
        UnsafeFile, CorruptModel: as `read_header`; or the file lacks a part that a picture needs.
        UnsupportedOption: it is another kind of file, or of a family that is not drawn from single files.
    """
    header = read_header(path)
    what = identify(header)
    if what is None:
        raise UnsupportedOption("model", f"{path} holds none of the tensors of a Stable Diffusion checkpoint")
    if what.kind != "checkpoint":
        raise UnsupportedOption("model", f"{path} is a {what}; a model is a whole checkpoint")
    of_network = [name.startswith(UNET) for name in header.tensors]
    alone = not any(of_network) or all(of_network)
    if what.base not in SCHEDULERS or alone:
        why = (
            "it holds the network alone, without an autoencoder and text encoders"
            if alone
            else f"single files are drawn of {', '.join(map(title, SCHEDULERS))}"
        )
        raise UnsupportedOption(
            "model",
            f"{path} is a {what}, and {why}. Get the file that has them, or lend it the other parts of a diffusers "
            f"folder of its family: `safelight models join {shlex.quote(str(path))} FOLDER`",
        )
    if "edm_mean" in header.tensors:
        raise UnsupportedOption("model", f"{path} was trained as EDM (Playground 2.5); use its diffusers folder")
    try:
        return dict(derive(header, what))
    except MissingTensors as lacking:
        raise CorruptModel(f"{path} lacks {lacking}") from None


def title(base: str) -> str:
    return TITLES[base]


def derive(header: Header, what: Identity) -> Iterator[tuple[str, Configuration]]:
    family, prediction = what.base, what.prediction
    task = "Inpaint" if what.inpaints else "InstructPix2Pix" if what.edits else ""
    t5, network = Shapes(header, T5), Shapes(header, UNET)
    index: Configuration = {"_class_name": f"{PIPELINES[family]}{task}Pipeline", "family": family}
    if t5.shapes:
        index[T5_PARTS[family]] = ["transformers", "T5EncoderModel"]
        yield T5_PARTS[family], t5_configuration(t5)
    elif family == "flux":
        raise MissingTensors(
            f"T5 ({T5}), and Flux reads nothing else: get the file that has its text encoders baked in"
        )
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
    if "ztsnr" in header.tensors:  # an empty tensor that says so, by the custom of ComfyUI
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    yield "scheduler", scheduler
    for name, part in TEXT_PARTS[family].items():
        shapes = Shapes(header, part.prefix)
        if not shapes.shapes:
            raise MissingTensors(f"a text encoder ({part.prefix}): get the file that has its text encoders baked in")
        made = open_clip_configuration if part.has_open_clip_names else clip_configuration
        yield name, made(shapes, part)


def vae_prefix(names: Iterable[str]) -> str:
    """How the names of the autoencoder's tensors begin."""
    return VAE_OF_FLUX if any(name.startswith(f"{VAE_OF_FLUX}decoder.") for name in names) else VAE


def text_prefixes(family: str, *, t5: bool) -> list[str]:
    """How the names of what reads the prompt begin."""
    return [*(part.prefix for part in TEXT_PARTS[family].values()), *([T5] if t5 else [])]


def sample_size(family: Base, prediction: str) -> int:
    return SAMPLE_SIZES.get((family, prediction), XL_SAMPLE_SIZE if family in SIZE_CONDITIONED else 64)
