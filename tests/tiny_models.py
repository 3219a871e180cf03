"""Very small checkpoints with random weights in diffusers' layout, each made in a second.

The weights of every network are perturbed after initialisation: otherwise layers hardly differ, and tests would not
notice a wrong one.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.models.vocabulary import sd1, sd2
from torch import nn

from safelight.models.checkpoints.digest import digest_model
from safelight.models.checkpoints.families import describe
from safelight.models.networks.load import Model, load_model
from safelight.models.networks.placement import Placement

CPU = Placement(torch.device("cpu"), torch.float32)
SIDE = 64
"""The smallest picture there is: 16 x 16 latent pixels."""
SD1_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
    "trained_betas": None,
}
SD2_SCHEDULER = {**SD1_SCHEDULER, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
ZERO_SNR_SCHEDULER = {**SD2_SCHEDULER, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SDXL_SCHEDULER = {
    **SD1_SCHEDULER,
    "_class_name": "EulerDiscreteScheduler",
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}
FLOW_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
LCM_SCHEDULER = {
    **SD1_SCHEDULER,
    "_class_name": "LCMScheduler",
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
    "set_alpha_to_one": True,
}
EDM_SCHEDULER = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "rho": 7.0,
    "solver_order": 2,
}

VAE = {
    "block_out_channels": (8, 8, 8),
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": SIDE,
    "scaling_factor": 0.18215,
}
CLIP_PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": 48, "width": 48},
    "size": {"shortest_edge": 48},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
}
UNET = {
    "sample_size": SIDE // 4,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
}


def write_sd1(folder: Path, **unet: Any) -> Path:
    return write_checkpoint(folder, "StableDiffusionPipeline", unet={**UNET, **unet}, scheduler=SD1_SCHEDULER)


def write_sd2(folder: Path, *, scheduler: dict[str, Any] = SD2_SCHEDULER) -> Path:
    """Differs from SD 1 in its width; its attention has a fixed width per head, and it pads prompts with "!"."""
    unet = {**UNET, "cross_attention_dim": 1024, "attention_head_dim": (2, 4), "use_linear_projection": True}
    return write_checkpoint(folder, "StableDiffusionPipeline", unet=unet, scheduler=scheduler, width=1024, layout=sd2)


def write_zero_snr(folder: Path) -> Path:
    return write_sd2(folder, scheduler=ZERO_SNR_SCHEDULER)


def write_inpaint(folder: Path) -> Path:
    """Nine input channels: the latent, the mask, the masked picture."""
    unet = {**UNET, "in_channels": 9}
    return write_checkpoint(folder, "StableDiffusionInpaintPipeline", unet=unet, scheduler=SD1_SCHEDULER)


def write_edit(folder: Path) -> Path:
    """Eight input channels: the latent, and the picture to edit."""
    unet = {**UNET, "in_channels": 8}
    return write_checkpoint(folder, "StableDiffusionInstructPix2PixPipeline", unet=unet, scheduler=SD1_SCHEDULER)


def write_variation(folder: Path) -> Path:
    """Conditioned by CLIP's image encoder instead of a text encoder."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    write_checkpoint(folder, "StableDiffusionImageVariationPipeline", unet=UNET, scheduler=SD1_SCHEDULER)
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=UNET["cross_attention_dim"],
        image_size=48,
        patch_size=16,
    )
    seeded(5, lambda: CLIPVisionModelWithProjection(config)).save_pretrained(folder / "image_encoder")
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(CLIP_PREPROCESSOR))
    index = json.loads((folder / "model_index.json").read_text())
    del index["text_encoder"], index["tokenizer"]
    index |= {
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_lcm(folder: Path) -> Path:
    """The network takes the guidance scale as an input."""
    unet = {**UNET, "time_cond_proj_dim": 16}
    return write_checkpoint(folder, "LatentConsistencyModelPipeline", unet=unet, scheduler=LCM_SCHEDULER)


def write_flow(folder: Path) -> Path:
    """No such checkpoint exists, but the flow-matching samplers need one for their tests."""
    return write_checkpoint(folder, "StableDiffusionPipeline", unet=UNET, scheduler=FLOW_SCHEDULER)


def write_edm(folder: Path) -> Path:
    return write_checkpoint(folder, "StableDiffusionPipeline", unet=UNET, scheduler=EDM_SCHEDULER)


def write_sdxl(folder: Path, *, channels: int = 4) -> Path:
    unet = {
        **UNET,
        "in_channels": channels,
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 32 + 24,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
        "use_linear_projection": True,
    }
    task = {4: "", 8: "InstructPix2Pix", 9: "Inpaint"}[channels]
    kind = f"StableDiffusionXL{task}Pipeline"
    write_checkpoint(folder, kind, unet=unet, scheduler=SDXL_SCHEDULER, vae={**VAE, "scaling_factor": 0.13025})
    write_text_encoder(folder / "text_encoder_2", sd2(folder / "tokenizer_2"), width=24, projection=16, seed=4)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "force_zeros_for_empty_prompt": True,
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_sdxl_refiner(folder: Path) -> Path:
    """Only the second text encoder; an aesthetic score instead of the picture's size as a condition."""
    unet = {
        **UNET,
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 24,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 5 * 8,
        "use_linear_projection": True,
    }
    vae = {**VAE, "scaling_factor": 0.13025}
    write_checkpoint(folder, "StableDiffusionXLImg2ImgPipeline", unet=unet, scheduler=SDXL_SCHEDULER, vae=vae)
    for name in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / name)
    write_text_encoder(folder / "text_encoder_2", sd2(folder / "tokenizer_2"), width=24, projection=16, seed=44)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "force_zeros_for_empty_prompt": False,
        "requires_aesthetics_score": True,
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_sdxl_inpaint(folder: Path) -> Path:
    return write_sdxl(folder, channels=9)


SD3_VAE = {
    **VAE,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
T5_WIDTH = 32


def write_sd3(folder: Path, *, t5: bool = True, channels: int = 16, **scheduler: Any) -> Path:
    """With a dual attention layer and normalised queries, as Stable Diffusion 3.5 has them."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    transformer = {
        "sample_size": SIDE // 4,
        "patch_size": 2,
        "in_channels": channels,
        "out_channels": 16,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": T5_WIDTH + 32,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 16 + 12,
        "pos_embed_max_size": 24,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    }
    seeded(1, lambda: SD3Transformer2DModel(**transformer)).save_pretrained(folder / "transformer")
    write_text_encoder(folder / "text_encoder", sd1(folder / "tokenizer"), width=32, projection=16, seed=3)
    write_text_encoder(folder / "text_encoder_2", sd2(folder / "tokenizer_2"), width=24, projection=12, seed=4)
    parts = {"transformer": ["diffusers", "SD3Transformer2DModel"]}
    for number in ("", "_2"):
        parts |= {f"text_encoder{number}": ["transformers", "CLIPTextModelWithProjection"]}
        parts |= {f"tokenizer{number}": ["transformers", "CLIPTokenizer"]}
    if t5:
        write_t5(folder / "text_encoder_3", folder / "tokenizer_3", width=T5_WIDTH + 32)
    parts |= {
        "text_encoder_3": ["transformers", "T5EncoderModel"] if t5 else [None, None],
        "tokenizer_3": ["transformers", "T5TokenizerFast"] if t5 else [None, None],
    }
    pipeline = "StableDiffusion3Pipeline" if channels == 16 else "StableDiffusion3InpaintPipeline"
    return write_rest(folder, pipeline, parts, scheduler={**FLOW_SCHEDULER, **scheduler})


def write_sd3_without_t5(folder: Path) -> Path:
    return write_sd3(folder, t5=False)


def write_sd3_shifting(folder: Path) -> Path:
    """Larger pictures get more noise; with these numbers 16 and 24 patches differ."""
    return write_sd3(folder, use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=256)


def write_sd3_inpaint(folder: Path) -> Path:
    return write_sd3(folder, channels=33)


def write_flux(folder: Path, *, guidance: bool = True) -> Path:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    transformer = {
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": T5_WIDTH,
        "pooled_projection_dim": 32,
        "guidance_embeds": guidance,
        "axes_dims_rope": (4, 6, 6),
    }
    seeded(1, lambda: FluxTransformer2DModel(**transformer)).save_pretrained(folder / "transformer")
    write_text_encoder(folder / "text_encoder", sd1(folder / "tokenizer"), width=32, projection=None, seed=3)
    write_t5(folder / "text_encoder_2", folder / "tokenizer_2", width=T5_WIDTH)
    parts = {
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
    }
    shifting = {"use_dynamic_shifting": True, "base_image_seq_len": 16, "max_image_seq_len": 256} if guidance else {}
    write_rest(folder, "FluxPipeline", parts, scheduler={**FLOW_SCHEDULER, "shift": 1.0, **shifting})
    # Its configuration says nothing of sizes.
    (folder / "safelight.json").write_text(json.dumps({"defaults": {"width": SIDE, "height": SIDE}}))
    return folder


def write_schnell(folder: Path) -> Path:
    """Takes no guidance scale, and its noise levels are not shifted."""
    return write_flux(folder, guidance=False)


def write_rest(folder: Path, pipeline: str, parts: dict[str, Any], *, scheduler: dict[str, Any]) -> Path:
    """The autoencoder, the scheduler and the index of a transformer's folder."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    seeded(2, lambda: AutoencoderKL(**SD3_VAE)).save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    parts |= {"scheduler": ["diffusers", scheduler["_class_name"]], "vae": ["diffusers", "AutoencoderKL"]}
    index = {"_class_name": pipeline, "_diffusers_version": "0.42.1", **parts}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_t5(folder: Path, tokenizer: Path, *, width: int, seed: int = 6) -> None:
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    # A few whole words, and letters for all others.
    words = ["\u2581" + word for word in "a photo of the red apple cat dog horse".split()]
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyzé,.()[]:0123456789"]
    scored = [(word, -3.0) for word in words] + [(letter, -8.0) for letter in letters]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scored]
    T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512).save_pretrained(tokenizer)
    config = T5Config(
        vocab_size=len(vocabulary),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    )
    seeded(seed, lambda: T5EncoderModel(config)).save_pretrained(folder)


def write_sdxl_edit(folder: Path) -> Path:
    return write_sdxl(folder, channels=8)


KINDS: dict[str, Callable[[Path], Path]] = {
    "sd1": write_sd1,
    "sd2": write_sd2,
    "zero_snr": write_zero_snr,
    "sdxl": write_sdxl,
    "inpaint": write_inpaint,
    "sdxl_refiner": write_sdxl_refiner,
    "sdxl_inpaint": write_sdxl_inpaint,
    "edit": write_edit,
    "sdxl_edit": write_sdxl_edit,
    "variation": write_variation,
    "lcm": write_lcm,
    "flow": write_flow,
    "edm": write_edm,
    "sd3": write_sd3,
    "sd3_without_t5": write_sd3_without_t5,
    "sd3_shifting": write_sd3_shifting,
    "sd3_inpaint": write_sd3_inpaint,
    "flux": write_flux,
    "schnell": write_schnell,
}


def write_checkpoint(
    folder: Path,
    pipeline: str,
    *,
    unet: dict[str, Any],
    scheduler: dict[str, Any],
    vae: dict[str, Any] = VAE,
    width: int = 32,
    layout: Callable[[Path], Path] = sd1,
) -> Path:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    write_text_encoder(folder / "text_encoder", layout(folder / "tokenizer"), width=width, projection=None, seed=3)
    seeded(1, lambda: UNet2DConditionModel(**unet)).save_pretrained(folder / "unet")
    seeded(2, lambda: AutoencoderKL(**vae)).save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {
        "_class_name": pipeline,
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_text_encoder(folder: Path, tokenizer: Path, *, width: int, projection: int | None, seed: int) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vocabulary = json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8"))
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width if width < 100 else 32,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=projection or width,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
    )
    seeded(seed, lambda: (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)).save_pretrained(folder)


def seeded(seed: int, make: Callable[[], nn.Module]) -> Any:
    with torch.random.fork_rng(), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(seed)
        network = make()
        for parameter in network.parameters():
            fan_in = parameter.shape[1:].numel() if parameter.ndim > 1 else 100
            parameter.data += 0.5 * torch.randn_like(parameter) / fan_in**0.5
    return network


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower with several threads, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint by kind, made at first use. Tests must not write to it."""
    home = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda kind: KINDS[kind](home / kind))


@pytest.fixture(scope="session")
def model(checkpoint: Callable[[str], Path]) -> Callable[[str], Model]:
    """The same, loaded."""
    return cache(lambda kind: load(checkpoint(kind)))


def load(folder: Path) -> Model:
    description = describe(folder)
    return load_model(description, name=folder.name, digest=digest_model(description), placement=CPU)


def start_picture(width: int = SIDE, height: int = SIDE) -> Image.Image:
    """Smooth colours, all different, so that a shift, mirroring or resizing is visible."""
    x, y = np.arange(width) / width, np.arange(height)[:, None] / height
    levels = np.stack(np.broadcast_arrays(x, y, (x + y) / 2), axis=-1) * 255
    return Image.fromarray(levels.astype(np.uint8))


def box_mask(box: tuple[int, int, int, int], width: int = SIDE, height: int = SIDE) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


INIT, MASK = "a" * 64, "b" * 64
"""Digests of the start picture and the mask, as specs name them."""
