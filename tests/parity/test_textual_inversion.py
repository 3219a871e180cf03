"""Embeddings against those that diffusers puts into the vocabulary with `load_textual_inversion`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.fakes import SteppedEngine, draw, psnr, spec_for
from tests.models.embeddings import write_a1111, write_diffusers, write_sdxl
from tests.parity.pipelines import Reference
from tests.parity.test_pipelines import MIN_PSNR, is_telling

from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.networks.load import Model
from safelight.models.networks.textual_inversion import load_embedding, pin_embeddings

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers warns of its own deprecations

Models = Callable[[str], Model]
PROMPT = "a photo of the my-cat, best quality"


def reference_with(folder: Path, file: Path) -> Reference:
    """A pipeline of its own: loading changes its vocabulary and its text encoders."""
    import diffusers

    theirs = Reference(folder)
    # Not loading words that nobody says: diffusers takes a token for each further vector, my-cat_1 and so on.
    parts: Any = theirs.components
    kind = diffusers.StableDiffusionXLPipeline if "text_encoder_2" in parts else diffusers.StableDiffusionPipeline
    quiet = {"add_watermarker": False} if "text_encoder_2" in parts else {"requires_safety_checker": False}
    pipeline: Any = kind(**parts, **quiet)
    tensors = load_file(file)
    for suffix, key in (("", "clip_l"), ("_2", "clip_g")) if "clip_l" in tensors else (("", next(iter(tensors))),):
        pipeline.load_textual_inversion(
            {"<any>": tensors[key]},
            token=file.stem,
            text_encoder=parts[f"text_encoder{suffix}"],
            tokenizer=parts[f"tokenizer{suffix}"],
        )
    return theirs


def draw_with(folder: Path, model: Model, **wishes: Any) -> Any:
    """Our picture, with what the prompt names pinned and loaded from the folder."""
    spec = spec_for(model, **wishes)
    widths = [encoder.width for encoder in model.text_encoders]
    pinned = pin_embeddings(
        Catalogue(folder.parent), [spec.prompt, spec.negative_prompt], model="tiny", model_widths=lambda: widths
    )
    with SteppedEngine() as job_service:
        embeddings = tuple(load_embedding(Catalogue(folder.parent), one.name, one.digest) for one in pinned)
        job = job_service.add(spec.model_copy(update={"embeddings": pinned}), model, embeddings=embeddings)
        job_service.finish()
        return job_service.image(job)


@pytest.mark.parametrize("where", ["prompt", "negative_prompt"])
@pytest.mark.parametrize(
    ("kind", "write"),
    [
        pytest.param("sd1", write_a1111, id="AUTOMATIC1111"),
        pytest.param("sd1", write_diffusers, id="diffusers, one vector"),
        pytest.param("sd1", lambda path: write_diffusers(path, num=4), id="diffusers, four vectors"),
        pytest.param("sd2", lambda path: write_a1111(path, width=1024), id="Stable Diffusion 2"),
        pytest.param("sdxl", write_sdxl, id="a pair for SDXL"),
    ],
)
def test_an_embedding_says_what_it_says_to_diffusers(
    kind: str, write: Callable[[Path], Path], where: str, tmp_path: Path, model: Models
) -> None:
    file = write(tmp_path / "embeddings" / "my-cat.safetensors")
    theirs = reference_with(model(kind).description.path, file)
    wishes = {"prompt": "a photo", "guidance": 8.0, "steps": 4, "seed": 5} | {where: PROMPT}
    expected = theirs.draw(spec_for(model(kind), **wishes))
    assert is_telling(expected)
    assert psnr(draw_with(tmp_path / "embeddings", model(kind), **wishes), expected) >= MIN_PSNR
    assert psnr(draw(spec_for(model(kind), **wishes), model(kind)), expected) < MIN_PSNR, "as words, it is another"
