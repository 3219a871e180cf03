"""LoRA files of every dialect: what they add, and what is said of files that do not fit."""

import json
import logging
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.lora_files import (
    CONVOLUTIONS,
    LINEAR,
    TEXT,
    Dice,
    Make,
    active,
    dora,
    layers,
    locon_cp,
    loha,
    lokr,
    lora,
    write,
    write_kohya,
    write_peft,
)
from torch import Tensor, nn

from safelight.errors import CorruptModel, IncompatibleLora, UnsafeFile
from safelight.models.adapters.lora import family_of
from safelight.models.adapters.lora_arithmetic import terms_of
from safelight.models.hooks.lora_terms import Layer
from safelight.models.networks.load import Model
from safelight.models.weights.lora_file import Target, algorithm_of, read_lora

Models = Callable[[str], Model]
EVERYTHING = (*LINEAR, *CONVOLUTIONS)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""float32 sums in another order, of numbers near 1."""


# What each algorithm adds to W, from its paper (sources in lora_arithmetic.py), written without our code.


def cp(t: Tensor, out: Tensor, into: Tensor) -> Tensor:
    return torch.einsum("i j k l, j r, i p -> p r k l", t, into, out)


def by_paper(t: dict[str, Tensor], weight: Tensor) -> Tensor:
    if "lora_mid.weight" in t:
        up, down = t["lora_up.weight"][:, :, 0, 0], t["lora_down.weight"][:, :, 0, 0]
        return (t["alpha"] / len(down)) * torch.einsum("o s, s r h w, r i -> o i h w", up, t["lora_mid.weight"], down)
    if "lora_down.weight" in t:
        down, up = t["lora_down.weight"], t["lora_up.weight"]
        return (t["alpha"] / len(down)) * (up.flatten(1) @ down.flatten(1)).view_as(weight)
    if "hada_t1" in t:
        one, two = (cp(t[f"hada_t{i}"], t[f"hada_w{i}_a"], t[f"hada_w{i}_b"]) for i in (1, 2))
        return t["alpha"] / t["hada_w1_b"].shape[0] * one * two
    if "hada_w1_a" in t:
        one, two = (t[f"hada_w{i}_a"] @ t[f"hada_w{i}_b"] for i in (1, 2))
        return (t["alpha"] / t["hada_w1_b"].shape[0] * one * two).view_as(weight)
    left, scale = t["lokr_w1"], torch.tensor(1.0)
    if "lokr_w2" in t:
        right = t["lokr_w2"]
    else:
        scale = t["alpha"] / t["lokr_w2_b"].shape[0]
        two = (t["lokr_w2_a"], t["lokr_w2_b"])
        right = cp(t["lokr_t2"], *two) if "lokr_t2" in t else two[0] @ two[1]
    right = right.reshape(weight.shape[0] // left.shape[0], weight.shape[1] // left.shape[1], *weight.shape[2:])
    return scale * torch.kron(left.view(*left.shape, *[1] * (weight.ndim - 2)), right.contiguous())


ALGORITHMS: dict[str, Make] = {
    "LoRA": lora,
    "LoCon CP": locon_cp,
    "LoHa": loha,
    "LoHa of large rank": partial(loha, rank=6),
    "LoHa CP": partial(loha, cp=True),
    "LoKr": lokr,
    "LoKr product": partial(lokr, rank=2),
    "LoKr CP": partial(lokr, rank=2, cp=True),
}
LAYERS: dict[str, Layer] = {
    "linear": nn.Linear(16, 24),
    "1x1": nn.Conv2d(16, 24, 1),
    "3x3": nn.Conv2d(16, 24, 3, padding=1),
    "stride 2": nn.Conv2d(16, 24, 3, padding=1, stride=2),
}
for each in LAYERS.values():
    each.requires_grad_(False)


def in_file(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """By our names for them."""
    renamed = {"lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid"}
    return {renamed.get(name, name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_adds_what_its_paper_says(name: str, kind: str) -> None:
    layer = LAYERS[kind]
    tensors = ALGORITHMS[name](layer, Dice(1))
    terms = terms_of(in_file(tensors), layer, scale=None)
    expected = by_paper(tensors, layer.weight)
    assert expected.abs().max() > 0.01, "too little to tell"
    torch.testing.assert_close(sum(term.delta(layer.weight) for term in terms), expected, **CLOSE)


@pytest.mark.parametrize("by_input", [False, True], ids=["by output", "by input"])
@pytest.mark.parametrize("kind", LAYERS)
def test_dora_gives_rows_or_columns_their_lengths(kind: str, by_input: bool) -> None:
    layer = LAYERS[kind]
    tensors = dora(layer, Dice(1), by_input=by_input)
    whole = layer.weight + by_paper(tensors, layer.weight)
    across = [dim for dim in range(whole.ndim) if dim != (1 if by_input else 0)]
    lengths = whole.square().sum(dim=across, keepdim=True).sqrt()
    expected = tensors["dora_scale"] * whole / lengths - layer.weight
    terms = terms_of(in_file(tensors), layer, scale=None)
    torch.testing.assert_close(sum(term.delta(layer.weight) for term in terms), expected, **CLOSE)


@pytest.mark.parametrize("make", [*ALGORITHMS.values(), dora], ids=[*ALGORITHMS, "DoRA"])
@pytest.mark.parametrize("kind", LAYERS)
def test_what_a_term_adds_to_an_output_is_what_it_adds_to_the_weights(kind: str, make: Make) -> None:
    layer = LAYERS[kind]
    x = torch.randn(3, 5, 16) if kind == "linear" else torch.randn(3, 16, 8, 8)
    output = layer(x)
    for term in terms_of(in_file(make(layer, Dice(2))), layer, scale=None):
        twin = {"weight": layer.weight + term.delta(layer.weight)}
        expected = torch.func.functional_call(layer, twin, x) - output
        # The difference of two outputs of size 1 has their rounding.
        torch.testing.assert_close(term.apply(layer, x, output), expected, rtol=1e-3, atol=1e-4)


# Dialects.


def to_ldm(model: Model) -> Callable[[str], str]:
    from safelight.models.hooks.lora_names import ldm_paths

    paths = ldm_paths(model.unet)
    return lambda name: paths.get(name, name)


def same(one: Any, other: Any) -> bool:
    """Equal in what they add to every layer of every network."""
    pairs = [(one.unet, other.unet), *zip(one.text_encoders, other.text_encoders, strict=True)]
    return all(
        a.terms.keys() == b.terms.keys()
        and all(
            torch.equal(getattr(t, name), getattr(u, name))
            for path in a.terms
            for t, u in zip(a.terms[path], b.terms[path], strict=True)
            for name in t.__slots__
        )
        for a, b in pairs
    )


def renamed(path: Path, change: Callable[[str], str]) -> Path:
    other = path.with_stem(f"{path.stem}-other")
    return write(other, {change(name): tensor for name, tensor in load_file(path).items()})


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_dialects_of_the_same_numbers_say_the_same(kind: str, model: Models, tmp_path: Path) -> None:
    ours = model(kind)
    plain = active(write_kohya(tmp_path / "kohya.safetensors", ours, endings=EVERYTHING), ours).lora
    assert plain.unmatched == ()
    assert len(plain.unet.terms) == len(layers(ours.unet, EVERYTHING))
    assert all(len(encoder.terms) == 18 for encoder in plain.text_encoders), "three layers of six"
    ldm = write_kohya(tmp_path / "ldm.safetensors", ours, endings=EVERYTHING, rename=to_ldm(ours))
    assert "lora_unet_input_blocks_3_1_proj_in.lora_down.weight" in load_file(ldm)
    assert same(active(ldm, ours).lora, plain)


def test_diffusers_spellings_of_the_same_numbers_say_the_same(model: Models, tmp_path: Path) -> None:
    ours = model("sd1")
    peft = write_peft(tmp_path / "peft.safetensors", ours, alpha=4, rank=4)  # a scale of 1 needs no record
    expected = active(peft, ours).lora

    def before_peft(name: str) -> str:
        name = name.replace("lora_A.", "lora.down.").replace("lora_B.", "lora.up.")
        if name.startswith("text_encoder."):
            name = name.replace(".lora.", ".lora_linear_layer.").replace("text_encoder.", "text_encoder.text_model.")
        return name

    def attention_processors(name: str) -> str:
        name = before_peft(name)
        for projection in ("to_q", "to_k", "to_v", "to_out.0"):
            old = projection.removesuffix(".0")
            name = name.replace(f".attn1.{projection}.lora.", f".attn1.processor.{old}_lora.")
            name = name.replace(f".attn2.{projection}.lora.", f".attn2.processor.{old}_lora.")
        return name

    for spelling in (before_peft, attention_processors):
        other = active(renamed(peft, spelling), ours).lora
        assert other.unmatched == ()
        assert same(other, expected), spelling.__name__


def test_alpha_of_peft_is_in_the_header(model: Models, tmp_path: Path) -> None:
    ours = model("sd1")
    two, one = (active(write_peft(tmp_path / f"{a}.safetensors", ours, alpha=a), ours).lora for a in (2, 1))
    path = next(iter(two.unet.terms))
    torch.testing.assert_close(two.unet.terms[path][0].up, 2 * one.unet.terms[path][0].up)


def test_ranks_and_alphas_of_single_layers_and_rank_stabilised_scales() -> None:
    from safelight.models.weights.lora_file import LoraFile

    record = {
        "unet.r": 4,
        "unet.lora_alpha": 8,
        "unet.rank_pattern": {"attn1.to_q": 16},
        "unet.alpha_pattern": {"a.attn1.to_q": 4},
    }

    def scale(name: str, **more: Any) -> float | None:
        metadata = {"lora_adapter_metadata": json.dumps(record | more)}
        return LoraFile(Path(), {}, {}, (), metadata).scale(Target("unet", name))

    assert scale("a.attn1.to_k") == 2
    assert scale("a.attn1.to_q") == 4 / 16
    assert scale("a.attn1.to_k", **{"unet.use_rslora": True}) == 4
    assert LoraFile(Path(), {}, {}, (), {}).scale(Target("unet", "x")) is None


@pytest.mark.parametrize(
    ("make", "name"),
    [(lora, "LoRA"), (loha, "LoHa"), (lokr, "LoKr"), (dora, "DoRA LoRA")],
)
def test_a_file_is_called_by_its_algorithm(make: Make, name: str) -> None:
    assert algorithm_of(in_file(make(LAYERS["linear"], Dice(0)))) == name
    assert algorithm_of(in_file(lora(LAYERS["3x3"], Dice(0)))) == "LoCon"


# What does not fit.


def test_keys_for_nothing_are_reported_and_the_rest_is_used(
    model: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = model("sd1")
    path = write_kohya(tmp_path / "odd.safetensors", ours)
    more = {
        "lora_unet_down_blocks_9_proj.lora_down.weight": torch.zeros(4, 8),
        "lora_unet_down_blocks_9_proj.lora_up.weight": torch.zeros(8, 4),
        "bundle_emb.thing.string_to_param": torch.zeros(1),
    }
    write(path, load_file(path) | more)
    with caplog.at_level(logging.WARNING):
        found = active(path, ours).lora
    assert set(found.unmatched) == set(more)
    assert "odd: 3 of its keys" in caplog.text
    assert len(found.unet.terms) == len(layers(ours.unet, LINEAR))


def test_a_file_for_another_family_is_refused_by_name(model: Models, tmp_path: Path) -> None:
    """Widths of the tiny models are nobody's, so the file's are made those of SDXL."""
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{name}.lora_down.weight": torch.zeros(4, 2048), f"{name}.lora_up.weight": torch.zeros(16, 4)}
    with pytest.raises(IncompatibleLora, match=r"does not fit sd1 \(sd1\).*attn2.to_k.*made for sdxl"):
        active(write(tmp_path / "big.safetensors", tensors), model("sd1"))


def test_a_file_of_which_nothing_fits_is_refused(model: Models, tmp_path: Path) -> None:
    name = "lora_unet_double_blocks_0_img_attn_proj"
    tensors = {f"{name}.lora_down.weight": torch.zeros(4, 8), f"{name}.lora_up.weight": torch.zeros(8, 4)}
    with pytest.raises(IncompatibleLora, match="the model has none of its layers; it seems made for Flux"):
        active(write(tmp_path / "flux.safetensors", tensors), model("sd1"))
    with pytest.raises(IncompatibleLora, match="there is no LoRA in the file"):
        active(write(tmp_path / "vae.safetensors", {"decoder.weight": torch.zeros(4)}), model("sd1"))


def test_a_text_encoder_that_fits_does_not_make_the_unet_fit(model: Models, tmp_path: Path) -> None:
    ours = model("sd1")
    path = write_kohya(tmp_path / "x.safetensors", ours)
    tensors = {name.replace("_down_blocks_1", "_down_blocks_7"): t for name, t in load_file(path).items()}
    strange = {n.replace("mid_block", "mid_blok").replace("up_blocks", "up_bloks"): t for n, t in tensors.items()}
    with pytest.raises(IncompatibleLora, match="none of its layers"):
        active(write(path, strange), ours)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_the_family_is_read_from_the_width_of_the_prompt(kind: str, tmp_path: Path) -> None:
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    width = {"sd1": 768, "sdxl": 2048}[kind]
    path = write(tmp_path / "x.safetensors", {f"{name}.lora_down.weight": torch.zeros(4, width)})
    assert family_of(read_lora(path)) == kind


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {n: v for n, v in t.items() if not n.endswith("up.weight")}, "without 'up'"),
        (lambda t: t | {n: torch.zeros(3, 3) for n in t if n.endswith("alpha")}, "single finite numbers"),
        (lambda t: t | {n: v[:, :1] for n, v in t.items() if n.endswith("up.weight")}, "do not fit together"),
        (lambda t: t | {n: v[None] for n, v in t.items() if n.endswith("down.weight")}, "do not fit together"),
    ],
    ids=["half missing", "alpha no number", "ranks differ", "too many dimensions"],
)
def test_tensors_that_do_not_go_together_are_refused(
    change: Callable[[Any], Any], says: str, model: Models, tmp_path: Path
) -> None:
    path = write_kohya(tmp_path / "bad.safetensors", model("sd1"))
    with pytest.raises((CorruptModel, IncompatibleLora), match=says):
        active(write(path, change(load_file(path))), model("sd1"))


def test_hostile_files_are_refused_before_their_tensors_are_read(model: Models, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.safetensors"
    bomb.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(CorruptModel, match="not a safetensors file"):
        read_lora(bomb)
    overlapping = json.dumps(
        {
            "lora_unet_x.lora_down.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
            "lora_unet_x.lora_up.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        }
    ).encode()
    bomb.write_bytes(struct.pack("<Q", len(overlapping)) + overlapping + bytes(16))
    with pytest.raises(CorruptModel, match="overlaps another"):
        read_lora(bomb)
    pickle = tmp_path / "pickle.safetensors"
    pickle.write_bytes(b"\x80\x02}q\x00." + bytes(20))
    with pytest.raises(UnsafeFile):
        read_lora(pickle)
    garbled = read_lora(write(bomb, {}, {"lora_adapter_metadata": '{"unet.lora_alpha": "x"}'}))
    with pytest.raises(CorruptModel, match="lora_adapter_metadata"):
        garbled.scale(Target("unet", "x"))


def test_text_layers_are_all_that_kohya_trains(model: Models) -> None:
    assert len(layers(model("sd1").text_encoders[0].network, TEXT)) == 18


ATTENTION, ADDED = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))
FUSED = {
    ("flux", "double_blocks.1.img_attn.qkv"): [f"transformer_blocks.1.attn.{name}" for name in ATTENTION],
    ("flux", "double_blocks.0.txt_attn.qkv"): [f"transformer_blocks.0.attn.{name}" for name in ADDED],
    ("flux", "single_blocks.1.linear1"): [
        *(f"single_transformer_blocks.1.attn.{name}" for name in ATTENTION),
        "single_transformer_blocks.1.proj_mlp",
    ],
    ("flux", "single_blocks.0.linear2"): ["single_transformer_blocks.0.proj_out"],
    ("sd3", "joint_blocks.0.x_block.attn.qkv"): [f"transformer_blocks.0.attn.{name}" for name in ATTENTION],
    ("sd3", "joint_blocks.0.context_block.mlp.fc1"): ["transformer_blocks.0.ff_context.net.0.proj"],
}
"""The original code's layers of transformers, and those of diffusers that are one there."""


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."], ids=["kohya", "ComfyUI"])
@pytest.mark.parametrize("algorithm", ["LoRA", "LoHa", "LoHa of large rank", "LoKr", "LoKr, cut", "DoRA", "full"])
@pytest.mark.parametrize(("kind", "theirs"), FUSED)
def test_what_is_one_layer_in_the_original_code_changes_each_of_its_parts(
    kind: str, theirs: str, algorithm: str, prefix: str, model: Models, tmp_path: Path
) -> None:
    ours, paths = model(kind), FUSED[kind, theirs]
    weights = [ours.unet.get_submodule(path).weight.data for path in paths]
    layer = nn.Linear(weights[0].shape[1], sum(map(len, weights))).requires_grad_(False)
    layer.weight.data = torch.cat(weights)
    makes: dict[str, Make] = {
        **ALGORITHMS,
        "LoKr, cut": partial(lokr, factor=2),
        "DoRA": dora,
        "full": lambda layer, dice: {"diff": dice.roll(*layer.weight.shape)},
    }
    tensors = makes[algorithm](layer, Dice(3))
    name = prefix + (theirs.replace(".", "_") if prefix == "lora_unet_" else theirs)
    path = write(tmp_path / "lora.safetensors", {f"{name}.{key}": tensor for key, tensor in tensors.items()})
    if algorithm == "full":
        expected = tensors["diff"]
    elif algorithm == "DoRA":
        changed = layer.weight.data + by_paper(tensors, layer.weight.data)
        expected = changed * tensors["dora_scale"] / changed.norm(dim=1, keepdim=True) - layer.weight.data
    else:
        expected = by_paper(tensors, layer.weight.data)
    found = active(path, ours).lora
    assert found.unmatched == ()
    assert set(found.unet.terms) == set(paths)
    added = torch.cat(
        [
            sum((term.delta(weight) for term in found.unet.terms[path]), torch.zeros_like(weight))
            for path, weight in zip(paths, weights, strict=True)
        ]
    )
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-5)


def test_layers_whose_rows_diffusers_keeps_in_another_order_are_reported(model: Models, tmp_path: Path) -> None:
    dice = Dice(1)
    file = {
        f"lora_unet_{name}.lora_{side}.weight": dice.roll(*shape)
        for name, rows in (("double_blocks_0_img_attn_qkv", 96), ("final_layer_adaLN_modulation_1", 64))
        for side, shape in (("down", (4, 32)), ("up", (rows, 4)))
    }
    path = write(tmp_path / "kohya.safetensors", file)
    unmatched = active(path, model("flux")).lora.unmatched
    assert {key.split(".")[0] for key in unmatched} == {"lora_unet_final_layer_adaLN_modulation_1"}


def test_a_fused_layer_of_another_width_is_refused_by_its_names(model: Models, tmp_path: Path) -> None:
    tensors = {"lora_down.weight": torch.zeros(4, 48), "lora_up.weight": torch.zeros(144, 4)}
    file = {f"lora_unet_double_blocks_0_img_attn_qkv.{name}": tensor for name, tensor in tensors.items()}
    with pytest.raises(IncompatibleLora, match=r"attn\.to_q and unet\..*to_v is \(96, 32\) here and \(144, 48\)"):
        active(write(tmp_path / "kohya.safetensors", file), model("flux"))
