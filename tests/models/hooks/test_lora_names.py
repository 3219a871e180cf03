"""What layers are called elsewhere, on networks of the real shapes (without their weights)."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from safelight.models.hooks.lora_names import block_names, denoiser_names, flat, layers_of, text_names

SD15: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}


@cache
def unet(kind: str) -> nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**(SD15 if kind == "sd15" else SDXL))


# Keys of published files, and where diffusers' own converter puts them.
@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        (
            "sd15",
            "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
        ),
        (
            "sd15",
            "mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj",
            "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
        ),
        ("sd15", "input_blocks_1_1_proj_in", "down_blocks.0.attentions.0.proj_in"),
        ("sd15", "input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("sd15", "output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv"),
        ("sd15", "output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
        ("sd15", "output_blocks_11_0_skip_connection", "up_blocks.3.resnets.2.conv_shortcut"),
        (
            "sdxl",
            "input_blocks_4_1_transformer_blocks_0_attn1_to_k",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k",
        ),
        (
            "sdxl",
            "input_blocks_8_1_transformer_blocks_9_attn2_to_v",
            "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_v",
        ),
        ("sdxl", "middle_block_2_in_layers_2", "mid_block.resnets.1.conv1"),
        (
            "sdxl",
            "output_blocks_5_1_transformer_blocks_1_ff_net_2",
            "up_blocks.1.attentions.2.transformer_blocks.1.ff.net.2",
        ),
        ("sdxl", "output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("sdxl", "input_blocks_6_0_op", "down_blocks.1.downsamplers.0.conv"),
        ("sdxl", "input_blocks_7_0_emb_layers_1", "down_blocks.2.resnets.0.time_emb_proj"),
        ("sdxl", "label_emb_0_2", "add_embedding.linear_2"),
        ("sdxl", "out_2", "conv_out"),
    ],
)
def test_a_published_key_leads_to_its_layer(kind: str, name: str, path: str) -> None:
    assert denoiser_names(unet(kind))[name] == (path,)


@pytest.mark.parametrize(("kind", "modules"), [("sd15", 192), ("sdxl", 722)])
def test_as_many_attention_layers_as_kohya_trains(kind: str, modules: int) -> None:
    """Its trainer reports these numbers for a LoRA of the UNet without convolutions."""
    inside = [path for path in layers_of(unet(kind)) if ".attentions." in path]
    assert len(inside) == modules


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_flat_names_stand_for_one_layer_each_and_every_layer_has_its_own(kind: str) -> None:
    names, layers = denoiser_names(unet(kind)), layers_of(unet(kind))
    assert all(names[flat(path)] == (path,) for path in layers)
    assert set(names.values()) == {(path,) for path in layers}


def test_blocks_are_those_of_the_block_weight_extension() -> None:
    blocks = block_names(unet("sdxl"))
    assert blocks["down_blocks.1.attentions.0.proj_in"] == ("IN04", "down")
    assert blocks["mid_block.attentions.0.proj_in"] == ("M00", "mid")
    assert blocks["up_blocks.1.attentions.2.proj_in"] == ("OUT05", "up")
    assert "time_embedding.linear_1" not in blocks


def test_the_text_encoder_goes_by_old_and_new_names() -> None:
    encoder = nn.Module()
    encoder.encoder = nn.Module()
    encoder.encoder.q_proj = nn.Linear(1, 1)
    names = text_names(encoder)
    for name in ("text_model_encoder_q_proj", "encoder_q_proj", "text_model_encoder_to_q"):
        assert names[name] == ("encoder.q_proj",)
