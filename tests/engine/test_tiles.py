"""Pictures drawn in tiles: each tile is a row, and there are no seams."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.fakes import SteppedEngine, draw, out_of_memory_above, psnr, spec_for
from tests.tiny_models import INIT, start_picture
from torch import Tensor

from safelight.diffusion.tiling import Tiling
from safelight.engine.guided import joined
from safelight.errors import UnsupportedOption
from safelight.events import Failed, Stepped
from safelight.models.adapters.sag import AttentionMask, SagHook
from safelight.models.backends.denoiser import Conditions, Denoiser
from safelight.models.backends.eager import eager_denoiser
from safelight.models.backends.tiled import tiled
from safelight.models.hooks.hook import EffectRows
from safelight.models.networks.load import Model
from safelight.spec import Denoised, Tiles

Models = Callable[[str], Model]
OnEvent = Callable[[Tensor, Conditions], None]
PICTURES = {INIT: start_picture(160, 96)}
LARGE: dict[str, Any] = {"init": INIT, "width": 160, "height": 96, "strength": 0.5, "steps": 4, "guidance": 4.0}


def large(model: Model, *, side: int = 64, **wishes: Any) -> Denoised:
    return spec_for(model, **LARGE | wishes, tiles=Tiles(side=side, overlap=16))


def heard_by(on_event: OnEvent) -> Callable[[Model], Denoiser]:
    """A denoiser that records its inputs."""

    def denoiser_for(model: Model) -> Denoiser:
        denoise = eager_denoiser(model)

        def listening(latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
            on_event(latents, conditions)
            return denoise(latents, timesteps, conditions)

        return listening

    return denoiser_for


def test_a_network_that_looks_at_single_pixels_cannot_tell_tiles_from_the_whole() -> None:
    def pointwise(latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        return latents * timesteps.view(-1, 1, 1, 1) + conditions.context.mean(dim=(1, 2)).view(-1, 1, 1, 1)

    latents, timesteps = torch.randn(3, 4, 20, 33), torch.tensor([1.0, 2.0, 3.0])
    conditions = Conditions(context=torch.randn(3, 7, 5), mask=None, pooled=None, time_ids=None, guidance=None)
    expected = pointwise(latents, timesteps, conditions)
    for most_rows in (1, 5, 1000):
        over = tiled(pointwise, Tiling(side=8, overlap=3), most_rows=most_rows, scale=8)
        torch.testing.assert_close(over(latents, timesteps, conditions), expected, rtol=1e-5, atol=1e-5)


def test_what_tiles_attend_to_is_joined_for_the_rows_that_are_asked_about() -> None:
    def attends_to_what_is_bright(latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        for latent, mask in zip(latents, conditions.effects["sag"].rows, strict=True):
            if mask is not None:
                mask.tiles.append((latent[:1] > 0).float())
        return latents

    latents, tiling = torch.randn(3, 4, 20, 33), Tiling(side=8, overlap=3)
    for most_rows in (1, 5, 1000):
        masks = [AttentionMask(), None, AttentionMask()]
        conditions = Conditions(
            context=torch.randn(3, 7, 5),
            mask=None,
            pooled=None,
            time_ids=None,
            guidance=None,
            effects={"sag": EffectRows(SagHook, masks)},
        )
        tiled(attends_to_what_is_bright, tiling, most_rows=most_rows, scale=8)(latents, torch.zeros(3), conditions)
        job: Any = SimpleNamespace(tiling=tiling, now=SimpleNamespace(latents=[latents[0]]))
        for latent, mask in zip(latents, masks, strict=True):
            if mask is not None:
                torch.testing.assert_close(joined(job, mask.tiles), (latent[:1] > 0).float())


def test_one_tile_as_large_as_the_picture_is_image_to_image(model: Models) -> None:
    ours = model("sd1")
    plain = spec_for(ours, **LARGE)
    assert psnr(draw(large(ours, side=160), ours, PICTURES), draw(plain, ours, PICTURES)) == float("inf")


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_all_tiles_are_drawn_in_one_call_where_they_fit(kind: str, model: Models) -> None:
    """Tiles that do not fit into one call take several; the picture is the same."""
    ours, rows = model(kind), list[int]()
    images: list[Image.Image] = []
    for budget in (1e9, 5 * 64 * 64 / 1e6):
        with SteppedEngine(
            heard_by(lambda latents, _: rows.append(len(latents))), budget_megapixels=budget
        ) as job_service:
            job = job_service.add(large(ours), ours, PICTURES)
            job_service.finish()
            images.append(job_service.image(job))
            assert [event.batch_rows for event in job_service.events_of(job, Stepped)] == [2, 2]
    # Three by two tiles, each with and without its prompt; then five at once.
    assert rows == [12] * 2 + [5, 5, 2] * 2
    assert psnr(*images) >= 60


def test_what_tiles_looked_at_is_blurred_in_as_many_calls_as_it_takes(model: Models) -> None:
    ours, spec = model("sd1"), large(model("sd1"), sag_scale=2.0)
    few, many = (drawn_within(spec, ours, budget) for budget in (5 * 64 * 64 / 1e6, 1e9))
    assert psnr(few, many) >= 60
    assert psnr(many, draw(large(ours), ours, PICTURES)) < 50


def drawn_within(spec: Denoised, model: Model, budget_megapixels: float) -> Image.Image:
    with SteppedEngine(budget_megapixels=budget_megapixels) as job_service:
        job = job_service.add(spec, model, PICTURES)
        job_service.finish()
        return job_service.image(job)


def test_tiles_that_do_not_fit_into_memory_are_drawn_fewer_at_a_time(model: Models) -> None:
    ours = model("sd1")
    with SteppedEngine(out_of_memory_above(3)) as job_service:
        job = job_service.add(large(ours), ours, PICTURES)
        job_service.finish()
        assert psnr(job_service.image(job), draw(large(ours), ours, PICTURES)) >= 60
    with SteppedEngine(out_of_memory_above(0)) as job_service:
        job = job_service.add(large(ours), ours, PICTURES)
        job_service.finish()
        assert isinstance(job_service.last(job), Failed)


def test_sdxl_is_told_which_part_a_tile_is(model: Models) -> None:
    encoded: list[Tensor | None] = []
    ours = model("sdxl")
    with SteppedEngine(heard_by(lambda _, conditions: encoded.append(conditions.time_ids))) as job_service:
        job_service.add(large(ours, guidance=1.0), ours, PICTURES)
        job_service.finish()
    assert encoded[0] is not None
    # Of a picture 96 high and 160 wide: the tile's top and left, and its size.
    assert encoded[0].tolist() == [[96, 160, y, x, 64, 64] for y in (0, 32) for x in (0, 48, 96)]


def test_company_and_size_are_minded(model: Models) -> None:
    """Tiled pictures of one canvas share calls, and none with a plain one of that size."""
    ours = model("sd1")
    with SteppedEngine() as job_service:
        jobs = [job_service.add(large(ours, seed=seed), ours, PICTURES) for seed in (1, 2)]
        assert jobs[0].megapixels == pytest.approx(2 * 6 * 64 * 64 / 1e6)
        plain = job_service.add(spec_for(ours, **LARGE), ours, PICTURES)
        job_service.finish()
        assert [event.batch_rows for event in job_service.events_of(jobs[0], Stepped)] == [4, 4]
        assert [event.batch_rows for event in job_service.events_of(plain, Stepped)] == [2, 2]
        assert psnr(job_service.image(jobs[1]), draw(large(ours, seed=2), ours, PICTURES)) >= 60


def test_no_seam_shows_where_tiles_meet(model: Models) -> None:
    """The step between neighbouring columns is no larger at the borders of tiles than elsewhere."""
    ours, init = model("sd1"), {INIT: Image.new("RGB", (256, 64), (120, 130, 140))}
    wishes = LARGE | {"width": 256, "height": 64, "strength": 1.0, "guidance": 1.0}
    image = draw(spec_for(ours, **wishes, tiles=Tiles(side=64, overlap=32)), ours, init)
    steps = np.abs(np.diff(np.asarray(image, dtype=float), axis=1)).mean(axis=(0, 2))
    starts = Tiling(side=16, overlap=8).starts(64)
    borders = [x for start in starts for x in (4 * start, 4 * (start + 16)) if 0 < x < 256]
    at_borders = steps[[x - 1 for x in borders]]
    assert at_borders.mean() < 1.5 * np.median(steps)


def test_a_network_that_is_not_there_is_said(model: Models) -> None:
    ours = model("sd1")
    spec = spec_for(ours, **LARGE | {"width": 192, "height": 128}, tiles=Tiles(side=64, upscaler="realesrgan-x4plus"))
    with SteppedEngine() as job_service:
        job = job_service.add(spec, ours, PICTURES)
        job_service.finish()
        last = job_service.last(job)
    assert isinstance(last, Failed)
    assert isinstance(last.error, UnsupportedOption)


def test_a_refiner_is_told_its_score_in_every_tile(model: Models) -> None:
    encoded: list[list[float]] = []

    def on_event(_latents: Tensor, conditions: Conditions) -> None:
        assert conditions.time_ids is not None
        encoded.extend(conditions.time_ids.tolist())

    refiner = model("sdxl_refiner")
    with SteppedEngine(heard_by(on_event)) as job_service:
        job = job_service.add(large(refiner), refiner, PICTURES)
        job_service.finish()
        job_service.image(job)
    assert {len(ids) for ids in encoded} == {5}
    assert {ids[4] for ids in encoded} == {6.0, 2.5}
    assert {tuple(ids[:2]) for ids in encoded} == {(96.0, 160.0)}
    assert len({tuple(ids[2:4]) for ids in encoded}) > 1
