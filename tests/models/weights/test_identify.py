from typing import Any

import pytest
from tests.models.ldm_files import KINDS, Ldm, checkpoint

from safelight.models.weights.identify import Identity, identify
from safelight.models.weights.safetensors_file import Entry, Header

UP = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
CASES: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, str], dict[str, Any]]] = {
    "kohya SD 1": ({f"lora_unet_{UP}.lora_down.weight": (8, 768)}, {}, {"kind": "lora", "base": "sd1"}),
    "kohya, alphas first": (
        {f"lora_unet_{UP}.alpha": (), f"lora_unet_{UP}.lora_down.weight": (8, 1024)},
        {},
        {"kind": "lora", "base": "sd2"},
    ),
    "kohya SDXL": ({"lora_te2_x.lora_down.weight": (8, 1280)}, {}, {"kind": "lora", "base": "sdxl"}),
    "peft": ({"unet.x.attn2.to_k.lora_A.weight": (8, 2048)}, {}, {"kind": "lora", "base": "sdxl"}),
    "LoHa, by metadata": (
        {"lora_unet_x.hada_w1_a": (320, 8)},
        {"ss_base_model_version": "sd_v2"},
        {"kind": "lora", "base": "sd2"},
    ),
    "ControlNet": ({"control_model.a.attn2.to_k.weight": (320, 768)}, {}, {"kind": "controlnet", "base": "sd1"}),
    "diffusers' ControlNet": ({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}, {}, {"kind": "controlnet"}),
    "IP-Adapter": (
        {"image_proj.proj.weight": (3072, 1024), "ip_adapter.1.to_k_ip.weight": (320, 768)},
        {},
        {"kind": "ip-adapter", "base": "sd1"},
    ),
    "IP-Adapter SDXL": (
        {"image_proj.proj.weight": (8192, 1280), "ip_adapter.1.to_k_ip.weight": (640, 2048)},
        {},
        {"kind": "ip-adapter", "base": "sdxl"},
    ),
    "T2I-Adapter": (
        {"conv_in.weight": (320, 192, 3, 3), "body.0.block1.weight": (320, 320, 3, 3)},
        {},
        {"kind": "t2i-adapter", "base": "sd1"},
    ),
    "diffusers' T2I-Adapter": (
        {"adapter.conv_in.weight": (320, 768, 3, 3), "adapter.body.0.resnets.0.block1.weight": (320, 320, 3, 3)},
        {},
        {"kind": "t2i-adapter", "base": "sdxl"},
    ),
    "VAE": ({"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)}, {}, {"kind": "vae"}),
    "embedding": ({"emb_params": (4, 768)}, {}, {"kind": "embedding", "base": "sd1"}),
    "SDXL pair": ({"clip_l": (2, 768), "clip_g": (2, 1280)}, {}, {"kind": "embedding", "base": "sdxl"}),
    "ESRGAN": ({"model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)}, {}, {"kind": "upscaler"}),
    "Flux": ({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, {}, {"kind": "checkpoint", "base": "flux"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_file_is_known_by_its_header(case: str) -> None:
    shapes, metadata, expected = CASES[case]
    found = identify(Header({name: Entry("F16", shape, 0, 0) for name, shape in shapes.items()}, metadata))
    assert found is not None
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("kind", "base"), [("sd1", "sd1"), ("sd2", "sd2"), ("sdxl", "sdxl"), ("inpaint", "sd1"), ("edit", "sd1")]
)
def test_a_checkpoint_is_known_by_its_parts(kind: str, base: str) -> None:
    found = identify(header_of(KINDS[kind]))
    assert found == Identity(
        kind="checkpoint",
        base=base,  # type: ignore[arg-type]
        prediction="v_prediction" if kind == "sd2" else "epsilon",
        inpaints=kind == "inpaint",
        edits=kind == "edit",
    )


def header_of(about: Ldm) -> Header:
    return Header({name: Entry("F16", shape, 0, 0) for name, shape in checkpoint(about)}, {})


@pytest.mark.parametrize("name", ["weight", "model.embed_tokens.weight"])
def test_unknown_files_are_not_identified(name: str) -> None:
    assert identify(Header({name: Entry("F16", (32_000, 4096), 0, 0)}, {})) is None
    assert identify(Header({}, {})) is None
