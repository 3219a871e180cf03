"""Our pictures with a LoRA against those of diffusers and peft, which read the same file.

Where diffusers cannot read a file (text encoder keys of kohya under transformers 5, kohya's DoRA, LyCORIS), its
pipeline gets the weights that the authors' formula gives (`by_paper` in `tests/models/adapters/test_lora.py`).
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import SteppedEngine, draw, psnr, spec_for
from tests.lora_files import (
    CONVOLUTIONS,
    LINEAR,
    OF_T5,
    TEXT,
    Dice,
    Make,
    active,
    dora,
    layers,
    loha,
    lokr,
    lora,
    write,
    write_kohya,
    write_peft,
)
from tests.models.adapters.test_lora import by_paper
from tests.parity.pipelines import Reference
from tests.parity.test_pipelines import MIN_PSNR

from safelight.models.adapters.lora_effect import ActiveLora
from safelight.models.adapters.lora_merge import merge
from safelight.models.networks.load import Model
from safelight.spec import Denoised

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers and peft warn of their own deprecations

Models = Callable[[str], Model]
Checkpoints = Callable[[str], Path]
EVERYTHING = (*LINEAR, *CONVOLUTIONS)
USUAL: dict[str, Any] = {"sampler": "DPM++ 2M Karras", "steps": 4, "guidance": 4.0, "guidance_rescale": 0.0, "seed": 7}
WRITERS: dict[str, Callable[[Path, Model], Path]] = {
    "kohya": lambda path, model: write_kohya(path, model, text=False),
    "kohya LoCon": lambda path, model: write_kohya(path, model, endings=EVERYTHING, text=False),
    "peft": write_peft,
    "peft alpha": lambda path, model: write_peft(path, model, alpha=3),
    "peft DoRA": lambda path, model: write_peft(path, model, decomposed=True, text=False),
}
LYCORIS: dict[str, Make] = {"LoRA with text encoders": lora, "LoHa": loha, "LoKr": lokr}


def ours_with(one: ActiveLora, model: Model) -> tuple[Denoised, Any]:
    spec = spec_for(model, **USUAL).model_copy(update={"loras": (one.pinned,)})
    with SteppedEngine() as job_service:
        job = job_service.add(spec, model, loras=(one,))
        job_service.finish()
        return spec, job_service.image(job)


@pytest.mark.parametrize("dialect", WRITERS)
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_file_draws_what_diffusers_draws_with_it(
    kind: str, dialect: str, model: Models, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    import diffusers

    path = WRITERS[dialect](tmp_path / "lora.safetensors", model(kind))
    theirs = Reference(checkpoint(kind))
    pipeline_class = getattr(diffusers, "StableDiffusionXLPipeline" if kind == "sdxl" else "StableDiffusionPipeline")
    with warnings.catch_warnings(action="ignore"):
        pipeline = pipeline_class(**theirs.components_for(pipeline_class, theirs.components["scheduler"]))
        pipeline.load_lora_weights(tmp_path, weight_name=path.name)
    spec, picture = ours_with(active(path, model(kind)), model(kind))
    assert psnr(picture, theirs.draw(spec)) >= MIN_PSNR
    assert psnr(picture, draw(spec_for(model(kind), **USUAL), model(kind))) < 30


@pytest.mark.parametrize(("kind", "pipeline"), [("sd3", "StableDiffusion3Pipeline"), ("flux", "FluxPipeline")])
def test_a_transformer_wears_what_peft_writes(
    kind: str, pipeline: str, model: Models, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    import diffusers

    ours, pipeline_class = model(kind), getattr(diffusers, pipeline)
    path = write_peft(tmp_path / "lora.safetensors", ours, alpha=3, text=False)
    theirs = Reference(checkpoint(kind))
    with warnings.catch_warnings(action="ignore"):
        loaded = pipeline_class(**theirs.components_for(pipeline_class, theirs.components["scheduler"]))
        loaded.load_lora_weights(tmp_path, weight_name=path.name)
    one, usual = active(path, ours), USUAL | {"sampler": "Default"}
    spec = spec_for(ours, **usual).model_copy(update={"loras": (one.pinned,)})
    plain = spec_for(ours, **usual)
    with SteppedEngine() as job_service:
        # Beside a row without, and one whose prompt is of another length.
        jobs = [job_service.add(spec, ours, loras=(one,)), job_service.add(plain, ours)]
        job_service.add(spec_for(ours, **usual | {"prompt": "a cat, " * 60}), ours)
        job_service.finish()
        with_lora, without = (job_service.image(job) for job in jobs)
    assert psnr(with_lora, theirs.draw(spec)) >= MIN_PSNR
    assert psnr(without, draw(plain, ours)) >= MIN_PSNR
    assert psnr(with_lora, without) < 30


def test_flux_wears_what_kohya_writes(model: Models, checkpoint: Checkpoints, tmp_path: Path) -> None:
    """In its double blocks: of the single ones, diffusers' converter knows the published width alone."""
    import diffusers
    from torch import nn

    ours, dice = model("flux"), Dice(4)
    blocks = layers(ours.unet, ["attn.to_q", "to_out.0", "ff.net.0.proj", "ff_context.net.2", "norm1.linear"])
    named = {"attn.to_q": "img_attn_qkv", "attn.to_out.0": "img_attn_proj", "ff.net.0.proj": "img_mlp_0"}
    named |= {"ff_context.net.2": "txt_mlp_2", "norm1.linear": "img_mod_lin"}
    file: dict[str, Any] = {}
    for path, layer in blocks.items():
        kind, number, rest = path.split(".", 2)
        if kind == "transformer_blocks":
            if rest == "attn.to_q":
                layer = nn.Linear(layer.in_features, 3 * layer.out_features).requires_grad_(False)
            name = f"lora_unet_double_blocks_{number}_{named[rest]}"
            file |= {f"{name}.{key}": tensor for key, tensor in lora(layer, dice, alpha=8.0).items()}
    path = write(tmp_path / "lora.safetensors", file)
    theirs, pipeline_class = Reference(checkpoint("flux")), getattr(diffusers, "FluxPipeline")  # noqa: B009
    with warnings.catch_warnings(action="ignore"):
        loaded = pipeline_class(**theirs.components_for(pipeline_class, theirs.components["scheduler"]))
        loaded.load_lora_weights(tmp_path, weight_name=path.name)
    one, usual = active(path, ours), USUAL | {"sampler": "Default"}
    spec = spec_for(ours, **usual).model_copy(update={"loras": (one.pinned,)})
    with SteppedEngine() as job_service:
        job = job_service.add(spec, ours, loras=(one,))
        job_service.finish()
        picture = job_service.image(job)
    assert psnr(picture, theirs.draw(spec)) >= MIN_PSNR
    assert psnr(picture, draw(spec_for(ours, **usual), ours)) < 30


T5_DIALECTS = {
    "sd3 kohya": "lora_te3_",
    "sd3 ComfyUI": "text_encoders.t5xxl.transformer.",
    "sd3 diffusers": "text_encoder_3.",
    "flux kohya": "lora_te3_",
    "flux OneTrainer": "lora_te2_",
    "flux ComfyUI": "text_encoders.t5xxl.transformer.",
    "flux diffusers": "text_encoder_2.",
}


@pytest.mark.parametrize("dialect", T5_DIALECTS)
def test_what_a_file_says_of_t5_is_what_weights_by_the_formula_say(
    dialect: str, model: Models, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    """diffusers passes over it, so its pipeline gets the merged weights."""
    kind, prefix = dialect.split()[0], T5_DIALECTS[dialect]
    ours, theirs, dice = model(kind), Reference(checkpoint(kind)), Dice(6)
    t5: Any = theirs.components[ours.description.t5]
    file: dict[str, Any] = {}
    for name, layer in layers(t5, OF_T5).items():
        tensors = lora(layer, dice, rank=4, alpha=8.0)
        layer.weight.data += by_paper(tensors, layer.weight.data)
        if dialect.endswith("diffusers"):
            tensors["lora_up.weight"] *= tensors.pop("alpha") / 4
        key = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
        spelt = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"} if prefix[-1] == "." else {}
        file |= {f"{key}.{spelt.get(tensor, tensor)}": value for tensor, value in tensors.items()}
    one, usual = active(write(tmp_path / "lora.safetensors", file), ours), USUAL | {"sampler": "Default"}
    assert not one.lora.unmatched
    plain = spec_for(ours, **usual)
    spec = plain.model_copy(update={"loras": (one.pinned,)})
    with SteppedEngine() as job_service:
        jobs = [job_service.add(spec, ours, loras=(one,)), job_service.add(plain, ours)]
        job_service.finish()
        with_lora, without = (job_service.image(job) for job in jobs)
    assert psnr(with_lora, theirs.draw(spec)) >= MIN_PSNR
    assert psnr(without, draw(plain, ours)) >= MIN_PSNR
    assert psnr(with_lora, without) < 30
    assert psnr(with_lora, draw(plain, merge(ours, [one], name="merged"))) >= MIN_PSNR


@pytest.mark.parametrize("algorithm", LYCORIS)
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_file_draws_what_diffusers_draws_with_weights_by_the_papers_formula(
    kind: str, algorithm: str, model: Models, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    make, dice = LYCORIS[algorithm], Dice(5)
    path = write_kohya(tmp_path / "lora.safetensors", model(kind), make, endings=EVERYTHING, seed=5)
    theirs = Reference(checkpoint(kind))
    # In the order in which the file was written, so that the dice fall alike.
    networks = [(theirs.components["unet"], EVERYTHING)]
    networks += [
        (theirs.components[name], TEXT) for name in ("text_encoder", "text_encoder_2") if name in theirs.components
    ]
    for network, endings in networks:
        for layer in layers(network, endings).values():
            layer.weight.data += by_paper(make(layer, dice), layer.weight.data)
    spec, picture = ours_with(active(path, model(kind)), model(kind))
    assert psnr(picture, theirs.draw(spec)) >= MIN_PSNR


def test_dora_of_kohya_is_dora_of_peft(model: Models, tmp_path: Path) -> None:
    """diffusers drops `dora_scale` on its way to peft, so its word is taken for peft's spelling of the same numbers."""
    from safetensors.torch import load_file

    ours = model("sd1")
    kohya = write_kohya(tmp_path / "kohya.safetensors", ours, dora, text=False)
    tensors = load_file(kohya)
    spelt: dict[str, Any] = {}
    for name in layers(ours.unet, LINEAR):
        old = f"lora_unet_{name.replace('.', '_')}"
        scale = float(tensors[f"{old}.alpha"]) / len(tensors[f"{old}.lora_down.weight"])
        spelt[f"unet.{name}.lora_A.weight"] = tensors[f"{old}.lora_down.weight"]
        spelt[f"unet.{name}.lora_B.weight"] = tensors[f"{old}.lora_up.weight"] * scale
        spelt[f"unet.{name}.lora_magnitude_vector"] = tensors[f"{old}.dora_scale"].flatten()
    peft = write(tmp_path / "peft.safetensors", spelt)
    assert psnr(ours_with(active(kohya, ours), ours)[1], ours_with(active(peft, ours), ours)[1]) >= MIN_PSNR
