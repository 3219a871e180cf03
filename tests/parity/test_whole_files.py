"""Transformers in one file with all their parts, against diffusers with the same numbers in a folder.

The folder is made by diffusers' converters and transformers' own tokenizers. Of Flux's network, whose converter knows
the published width alone, it is ours: `tests/models/networks/test_join.py` compares it with diffusers' at that width.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.models.ldm_files import Mmdit, write_flux, write_sd3
from tests.parity.pipelines import Reference
from tests.parity.test_pipelines import MIN_PSNR, TASKS, compare
from tests.tiny_models import load
from torch import Tensor

from safelight.models.networks.clip_vocabulary import read_merges
from safelight.models.networks.t5_vocabulary import read_pieces
from safelight.models.weights.mmdit_names import flux_layout, from_original

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers warns of its own deprecations

UNET, TEXTS, T5 = "model.diffusion_model.", "text_encoders.", "text_encoders.t5xxl.transformer."
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
SHIFTING = {"use_dynamic_shifting": True, "base_image_seq_len": 256, "max_image_seq_len": 4096}
FILES: dict[str, Any] = {
    "sd3.5": Mmdit(t5=True),
    "sd3.5 without T5": Mmdit(),
    "sd3": Mmdit(t5=True, twice=0, norms=False),
    "flux dev": {"guidance": True},
    "flux schnell": {"guidance": False},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """A file, and a folder with the same numbers."""
    home = tmp_path_factory.mktemp("whole")
    made: dict[str, tuple[Path, Path]] = {}

    def make(kind: str) -> tuple[Path, Path]:
        if kind not in made:
            path, folder = home / f"{kind}.safetensors", home / kind
            if kind.startswith("sd3"):
                write_sd3(path, FILES[kind])
            else:
                write_flux(path, **FILES[kind])
            # Sizes are said nowhere; those of the task are.
            path.with_suffix(".safelight.json").write_text('{"defaults": {"width": 64, "height": 64}}')
            made[kind] = path, unpacked(path, folder)
        return made[kind]

    return make


def unpacked(path: Path, folder: Path) -> Path:
    """The diffusers folder of a file."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    tensors, is_flux = load_file(path), path.stem.startswith("flux")
    factors = {"scaling_factor": 0.3611, "shift_factor": 0.1159} if is_flux else {}
    factors = factors or {"scaling_factor": 1.5305, "shift_factor": 0.0609}
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **factors,
    )
    put(vae, convert_ldm_vae_checkpoint(dict(tensors), dict(vae.config)), folder / "vae")
    put(*(flux_network if is_flux else sd3_network)(tensors), folder / "transformer")
    parts = {"vae": ["diffusers", "AutoencoderKL"]}
    clips = {"": "clip_l"} if is_flux else {"": "clip_l", "_2": "clip_g"}
    for end, name in clips.items():
        kind = write_clip(part_of(tensors, f"{TEXTS}{name}.transformer."), folder, end, projects=not is_flux)
        parts |= {f"text_encoder{end}": ["transformers", kind], f"tokenizer{end}": ["transformers", "CLIPTokenizer"]}
    end = "_2" if is_flux else "_3"
    there = any(name.startswith(T5) for name in tensors)
    if there:
        write_t5(part_of(tensors, T5), folder, end)
    parts |= {
        f"text_encoder{end}": ["transformers", "T5EncoderModel"] if there else [None, None],
        f"tokenizer{end}": ["transformers", "T5TokenizerFast"] if there else [None, None],
    }
    shifts = f"{UNET}guidance_in.in_layer.weight" in tensors
    scheduler = {**FLOW, **(SHIFTING if shifts else {}), "shift": 1.0 if is_flux and not shifts else 3.0}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    network = "FluxTransformer2DModel" if is_flux else "SD3Transformer2DModel"
    pipeline = "FluxPipeline" if is_flux else "StableDiffusion3Pipeline"
    parts |= {"transformer": ["diffusers", network], "scheduler": ["diffusers", scheduler["_class_name"]]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **parts}))
    return folder


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def put(network: Any, tensors: Mapping[str, Tensor], folder: Path) -> None:
    missing, beyond = network.load_state_dict(tensors, strict=False)
    assert not missing, missing
    assert {name.partition(".")[0] for name in beyond} <= {"text_projection"}
    network.save_pretrained(folder)


def sd3_network(tensors: Mapping[str, Tensor]) -> tuple[Any, Mapping[str, Tensor]]:
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    newer = f"{UNET}joint_blocks.0.x_block.attn2.qkv.weight" in tensors
    network = SD3Transformer2DModel(
        sample_size=128,
        num_layers=2,
        num_attention_heads=2,
        joint_attention_dim=192,
        caption_projection_dim=128,
        pooled_projection_dim=192,
        pos_embed_max_size=12,
        dual_attention_layers=(0,) if newer else (),
        qk_norm="rms_norm" if newer else None,
    )
    given = {name: tensor for name, tensor in tensors.items() if name.startswith(UNET)}
    return network, convert_sd3_transformer_checkpoint_to_diffusers(given)


def flux_network(tensors: Mapping[str, Tensor]) -> tuple[Any, Mapping[str, Tensor]]:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    given = part_of(tensors, UNET)
    network = FluxTransformer2DModel(
        num_layers=2,
        num_single_layers=2,
        num_attention_heads=1,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        guidance_embeds="guidance_in.in_layer.weight" in given,
    )
    return network, from_original(given, flux_layout(network.config))


def write_clip(tensors: Mapping[str, Tensor], folder: Path, end: str, *, projects: bool) -> str:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    width = tensors["text_model.final_layer_norm.weight"].shape[0]
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        projection_dim=width,
        hidden_act="gelu" if end else "quick_gelu",
    )
    network = CLIPTextModelWithProjection(config) if projects else CLIPTextModel(config)
    bare = not any(name.startswith("text_model.") for name in network.state_dict())
    named = {name.removeprefix("text_model.") if bare else name: tensor for name, tensor in tensors.items()}
    put(network, named, folder / f"text_encoder{end}")
    vocabulary, merges = read_merges()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token="!" if end else "<|endoftext|>")
    tokenizer.model_max_length = 77
    tokenizer.save_pretrained(folder / f"tokenizer{end}")
    return type(network).__name__


def write_t5(tensors: Mapping[str, Tensor], folder: Path, end: str) -> None:
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    width = tensors["shared.weight"].shape[1]
    config = T5Config(
        vocab_size=32_128,
        d_model=width,
        d_kv=64,
        d_ff=3 * width,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    )
    network = T5EncoderModel(config)
    put(network, {**tensors, "encoder.embed_tokens.weight": tensors["shared.weight"]}, folder / f"text_encoder{end}")
    pieces, charsmap = read_pieces()
    extra = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(100))]
    tokenizer = T5Tokenizer(vocab=[*pieces, *extra], _spm_precompiled_charsmap=charsmap, model_max_length=512)
    tokenizer.save_pretrained(folder / f"tokenizer{end}")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_drawn_as_diffusers_draws_its_parts(
    kind: str, task: str, whole: Callable[..., Any], record_property: Callable[[str, Any], None]
) -> None:
    path, folder = whole(kind)
    wishes = {"sampler": "Default", "prompt": "a photo of an astronaut riding a horse on the moon, 4k"} | TASKS[task]
    found = compare(load(path), Reference(folder), **wishes)
    record_property("psnr", found)
    assert found >= MIN_PSNR
