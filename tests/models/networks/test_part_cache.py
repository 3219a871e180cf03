"""Autoencoders and text encoders that stand in for a model's own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.fakes import SteppedEngine, draw, psnr, spec_for
from tests.models.ldm_files import Mmdit, write_sd3
from tests.models.vocabulary import sd1
from tests.tiny_models import CPU, INIT, SIDE, VAE, load, seeded, start_picture, write_t5, write_text_encoder

from safelight.errors import InvalidRequest, UnknownPart, UnsupportedOption
from safelight.events import Previewed, Stepped
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.part_folder import PartFolder
from safelight.models.networks.load import Model
from safelight.models.networks.part_cache import PartCache
from safelight.models.weights.ldm_weights import to_ldm
from safelight.spec import Denoised
from safelight.spec.parts import PinnedPart

Models = Callable[[str], Model]
Checkpoints = Callable[[str], Path]


@pytest.fixture
def shelf(tmp_path: Path, checkpoint: Checkpoints) -> PartCache:
    """A home with one autoencoder, as a folder and as a file of the original layout, one text encoder, one model."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    other = seeded(77, lambda: AutoencoderKL(**VAE))
    other.save_pretrained(tmp_path / "vaes" / "other")
    tensors = dict(to_ldm(other.state_dict(), "vae", family="sd1", config=dict(other.config)))
    file = {
        name.removeprefix("first_stage_model."): torch.cat(parts).contiguous() for name, (*parts,) in tensors.items()
    }
    save_file(file, tmp_path / "vaes" / "original.safetensors")
    shutil.copy(
        tmp_path / "vaes" / "other" / "diffusion_pytorch_model.safetensors", tmp_path / "vaes" / "bare.safetensors"
    )
    encoders = tmp_path / "text_encoders"
    write_text_encoder(encoders / "reader", sd1(tmp_path / "vocabulary"), width=32, projection=None, seed=78)
    write_text_encoder(encoders / "wide", sd1(tmp_path / "vocabulary2"), width=48, projection=None, seed=79)
    write_t5(encoders / "t5", tmp_path / "t5_words", width=48)
    write_t5(encoders / "wordy", tmp_path / "t5_words2", width=32)
    config = encoders / "wordy" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 99}))
    shutil.copytree(checkpoint("sd1"), tmp_path / "models" / "sd1")
    return PartCache(PartFolder(Catalogue(tmp_path)))


def with_parts(shelf: PartCache, model: Model, **wishes: Any) -> tuple[Denoised, Model]:
    parts = {part: wishes.pop(part) for part in ("vae", "text_encoder") if part in wishes}
    spec = spec_for(model, **wishes)
    spec = spec.model_copy(update={part: shelf.folder.pin(part, name) for part, name in parts.items()})
    return spec, shelf.with_parts(model, spec)


def reference(folder: Path, tmp_path: Path, **parts: Path) -> Model:
    """The checkpoint, written to disk with those parts in it."""
    copy = Path(shutil.copytree(folder, tmp_path / "whole" / folder.name))
    for part, source in parts.items():
        shutil.rmtree(copy / part)
        shutil.copytree(source, copy / part)
    return load(copy)


@pytest.mark.parametrize("name", ["other", "original", "bare", "PATH/vaes/other", "PATH/vaes/original.safetensors"])
def test_a_replaced_autoencoder_draws_as_a_checkpoint_that_contains_it(
    name: str, shelf: PartCache, model: Models, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    """Also where it starts from a picture, which is encoded by it."""
    expected = reference(checkpoint("sd1"), tmp_path, vae=tmp_path / "vaes" / "other")
    pictures = {INIT: start_picture()}
    for wishes in ({}, {"init": INIT, "strength": 0.7, "width": SIDE, "height": SIDE}):
        spec, dressed = with_parts(shelf, model("sd1"), vae=name.replace("PATH", str(tmp_path)), **wishes)
        found = draw(spec, dressed, pictures)
        assert found.tobytes() == draw(spec_for(expected, **wishes), expected, pictures).tobytes()
        assert psnr(found, draw(spec_for(model("sd1"), **wishes), model("sd1"), pictures)) < 30


def test_a_replaced_text_encoder_draws_as_a_checkpoint_that_contains_it(
    shelf: PartCache, model: Models, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    expected = reference(checkpoint("sd1"), tmp_path, text_encoder=tmp_path / "text_encoders" / "reader")
    spec, dressed = with_parts(shelf, model("sd1"), text_encoder="reader")
    assert draw(spec, dressed).tobytes() == draw(spec_for(expected), expected).tobytes()
    assert psnr(draw(spec, dressed), draw(spec_for(model("sd1")), model("sd1"))) < 30


def test_a_lone_encoder_replaces_the_one_of_its_width(shelf: PartCache, model: Models) -> None:
    _, dressed = with_parts(shelf, model("sdxl"), text_encoder="reader")
    first, second = model("sdxl").text_encoders
    assert dressed.text_encoders[0] is not first
    assert dressed.text_encoders[1] is second


@pytest.mark.parametrize("alone", ["folder", "file", "scaled file"])
@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_single_t5_replaces_the_models_own(
    kind: str, alone: str, shelf: PartCache, model: Models, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    ours, place = model(kind), tmp_path / "text_encoders" / ("mine" if alone == "folder" else "mine.safetensors")
    folder = tmp_path / "t5"
    write_t5(folder, tmp_path / "words", width=int(ours.description.unet["joint_attention_dim"]), seed=80)
    if alone == "folder":
        shutil.copytree(folder, place)
    else:
        tensors = load_file(folder / "model.safetensors")
        if alone == "scaled file":
            halved = "encoder.block.1.layer.0.SelfAttention.q"
            tensors[f"{halved}.weight"] /= 2
            tensors[f"{halved}.scale_weight"] = torch.tensor(2.0)
        save_file(tensors, place)
    expected = reference(checkpoint(kind), tmp_path, **{ours.description.t5: folder})
    spec, dressed = with_parts(shelf, ours, text_encoder=place.name, sampler="Default")
    assert [*dressed.text_encoders] == [*ours.text_encoders]
    found = draw(spec, dressed)
    plain = draw(spec_for(ours, sampler="Default"), ours)
    # A scaled layer is rounded to bfloat16 on its way.
    assert psnr(found, draw(spec_for(expected, sampler="Default"), expected)) >= (40 if alone == "scaled file" else 60)
    assert psnr(found, plain) < 35
    assert draw(spec_for(ours, sampler="Default"), shelf.with_parts(ours, spec_for(ours))).tobytes() == plain.tobytes()


def test_a_model_without_t5_is_given_one_by_name(shelf: PartCache, model: Models, checkpoint: Checkpoints) -> None:
    shutil.copytree(checkpoint("sd3"), shelf.folder.catalogue.home / "models" / "whole")
    bare, whole = model("sd3_without_t5"), model("sd3")
    spec, dressed = with_parts(shelf, bare, text_encoder="whole", sampler="Default")
    assert (bare.t5, [*dressed.prompt_encoders]) == (None, [*whole.prompt_encoders])
    expected = draw(spec_for(whole, sampler="Default"), whole)
    assert psnr(draw(spec, dressed), expected) >= 60
    assert psnr(draw(spec_for(bare, sampler="Default"), bare), expected) < 35


def test_memory_counts_only_the_tensors_used_from_a_single_file(shelf: PartCache, model: Models) -> None:
    write_sd3(shelf.folder.catalogue.home / "models" / "file.safetensors", Mmdit(t5=True))
    spec = spec_for(model("sd3")).model_copy(update={"text_encoder": shelf.folder.pin("text_encoder", "file")})
    spec = spec.model_copy(update={"vae": shelf.folder.pin("vae", "file")})
    file = load(shelf.folder.catalogue.home / "models" / "file.safetensors")
    sizes = {allocation.kind: allocation.size_bytes for allocation in shelf.allocations(spec, CPU)}
    readers = [tensor for reader in file.prompt_encoders.values() for tensor in reader.network.state_dict().values()]
    assert sizes == {
        "vae": sum(tensor.nbytes for tensor in file.vae.network.state_dict().values()),
        "text_encoder": sum({tensor.data_ptr(): tensor.nbytes for tensor in readers}.values()),
    }


def test_a_models_name_stands_for_its_part(shelf: PartCache, model: Models) -> None:
    spec, dressed = with_parts(shelf, model("sd2"), vae="sd1")
    assert dressed.vae_digest == spec.vae.digest != model("sd1").digest
    assert draw(spec, dressed).size == (SIDE, SIDE)


def test_pictures_that_differ_in_these_parts_share_calls(shelf: PartCache, model: Models) -> None:
    """And each is the picture it is alone, previews included."""
    ours = model("sd1")
    wishes: list[dict[str, Any]] = [{}, {"vae": "other"}, {"text_encoder": "reader"}, {"vae": "original", "seed": 3}]
    asked = [with_parts(shelf, ours, guidance=1.0, **wish) for wish in wishes]
    with SteppedEngine() as job_service:
        jobs = [job_service.add(spec, dressed, preview_every=3) for spec, dressed in asked]
        job_service.finish()
        assert {event.batch_rows for job in jobs for event in job_service.events_of(job, Stepped)} == {len(jobs)}
        for job, (spec, dressed) in zip(jobs, asked, strict=True):
            assert psnr(job_service.image(job), draw(spec, dressed)) >= 60
        plain, other = (job_service.events_of(job, Previewed)[0].image for job in jobs[:2])
        assert psnr(plain, other) < 40, "a preview shows the colours of its own autoencoder"


@pytest.mark.parametrize(
    ("kind", "part", "name", "why"),
    [
        ("sdxl", "vae", "other", "latent scaling factor 0.18215, but sdxl has 0.13025"),
        ("sd3", "vae", "other", "latent channels 4, but sd3 has 16"),
        ("sd1", "text_encoder", "wide", "has width 48; sd1 .sd1. uses text encoders of width 32"),
        ("sd1", "text_encoder", "PATH/vaes/original.safetensors", "holds no CLIP text encoder, and no T5"),
        ("sd1", "text_encoder", "PATH/text_encoders/t5", "has a T5, and sd1 .sd1. uses none"),
        ("sd3", "text_encoder", "PATH/text_encoders/t5", "has a T5 of width 48; sd3 needs width 64"),
        ("flux", "text_encoder", "PATH/text_encoders/wordy", "has embeddings for 99 tokens, but its tokenizer has 57"),
        ("sd2", "text_encoder", "sd1", "has width 32; sd2 .sd2. uses text encoders of width 1024"),
    ],
)
def test_a_part_that_does_not_fit_is_refused_with_the_reason(
    kind: str, part: str, name: str, why: str, shelf: PartCache, model: Models, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedOption, match=why):
        with_parts(shelf, model(kind), **{part: name.replace("PATH", str(tmp_path))})


def test_an_unknown_part_name_suggests_the_nearest(shelf: PartCache) -> None:
    with pytest.raises(UnknownPart, match=r"did you mean 'other'.*SAFELIGHT_HOME/vaes"):
        shelf.folder.find("vae", "othr")


def test_strangers_may_not_name_paths(shelf: PartCache, tmp_path: Path) -> None:
    closed = PartFolder(Catalogue(tmp_path, listed_only=True))
    assert closed.find("vae", "other").digest == shelf.folder.find("vae", "other").digest
    for path in (tmp_path / "vaes" / "other", tmp_path / "vaes" / "original.safetensors"):
        with pytest.raises(UnknownPart):
            closed.find("vae", str(path))


def test_another_file_of_that_name_is_refused(shelf: PartCache, model: Models) -> None:
    spec, _ = with_parts(shelf, model("sd1"), vae="other")
    config = shelf.folder.catalogue.home / "vaes" / "other" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": False}))
    with pytest.raises(InvalidRequest, match="the picture would differ"):
        shelf.with_parts(model("sd1"), spec)


def test_specs_without_these_parts_keep_their_digests(model: Models) -> None:
    spec = spec_for(model("sd1"))
    assert spec.model_copy(update={"vae": None, "text_encoder": None}).digest() == spec.digest()
    assert spec.model_copy(update={"vae": PinnedPart(name="other", digest="a" * 64)}).digest() != spec.digest()
