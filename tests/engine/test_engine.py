"""The engine's events and their order, and its handling of errors."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.fakes import SteppedEngine, draw, faulty, out_of_memory_above, psnr, spec_for
from tests.tiny_models import INIT, MASK, SIDE, box_mask, start_picture

from safelight.engine.engine import Engine
from safelight.engine.job import Job
from safelight.engine.prepare import LATENT_MODES
from safelight.errors import JobFailed, OutOfMemory, SafelightError, UnsupportedOption
from safelight.events import Cancelled, Decoded, Failed, Previewed, Queued, Started, Stepped
from safelight.models.networks.encode import Prompt, encode
from safelight.models.networks.load import Model
from safelight.spec import HighresFix

Models = Callable[[str], Model]
MIN_PSNR = 60.0
"""Kernels change the last bits with the batch size; see test_company."""
PICTURES = {INIT: start_picture(), MASK: box_mask((16, 8, 48, 40))}
BAD = "a dog"


@pytest.fixture
def tiny(model: Models) -> Model:
    return model("sd1")


def encoded(model: Model, prompt: str) -> torch.Tensor:
    [conditioning] = encode(model.text_encoders, [Prompt(prompt)], penultimate=False)
    return conditioning.context


# Events


@pytest.mark.parametrize("sampler", ["Euler", "Heun", "PLMS", "DPM2 a", "DPM++ 2S", "LCM"])
@pytest.mark.parametrize(
    "wishes",
    [{}, {"init": INIT, "strength": 0.6}, {"highres": {"scale": 1.5, "steps": 4}}],
    ids=["", "init", "highres"],
)
def test_events_come_in_order_and_none_is_missing(tiny: Model, sampler: str, wishes: dict[str, Any]) -> None:
    with SteppedEngine() as job_service:
        job = job_service.add(spec_for(tiny, sampler=sampler, steps=5, **wishes), tiny, PICTURES)
        job_service.finish()
        events = [event for event in job_service.events if event.job_id == job.id]
        assert [type(event) for event in events[:2]] == [Queued, Started]
        assert [type(event) for event in events[2:-1]] == [Stepped] * (len(events) - 3)
        [started] = job_service.events_of(job, Started)
        assert [event.step for event in job_service.events_of(job, Stepped)] == list(range(1, started.total_steps + 1))
        assert started.total_steps == (3 if "init" in wishes else 5 + 2 if "highres" in wishes else 5)
        assert isinstance(events[-1], Decoded)
        assert events[-1].compute_s > 0


def test_the_place_in_the_queue_is_told(tiny: Model) -> None:
    with SteppedEngine() as job_service:
        jobs = [job_service.add(spec_for(tiny, seed=seed), tiny) for seed in range(3)]
        assert [job_service.events_of(job, Queued)[0].position for job in jobs] == [0, 1, 2]


@pytest.mark.parametrize("sampler", ["Euler", "Heun"])
def test_previews_are_small_pictures_every_few_steps(tiny: Model, sampler: str) -> None:
    with SteppedEngine() as job_service:
        watched = job_service.add(spec_for(tiny, steps=6, sampler=sampler), tiny, preview_every=2)
        unwatched = job_service.add(spec_for(tiny, steps=6), tiny)
        job_service.finish()
        previews = job_service.events_of(watched, Previewed)
        assert [event.step for event in previews] == [2, 4, 6]
        assert {event.image.size for event in previews} == {(SIDE // 4, SIDE // 4)}
        assert not job_service.events_of(unwatched, Previewed)
        # The last estimate is the picture itself, as far as a matrix can tell colours.
        small = job_service.image(watched).resize(previews[-1].image.size)
        assert psnr(previews[-1].image, small) > psnr(previews[0].image, small)


def test_a_watched_picture_is_the_same_picture(tiny: Model) -> None:
    with SteppedEngine() as job_service:
        job = job_service.add(spec_for(tiny), tiny, preview_every=1)
        job_service.finish()
        assert job_service.image(job).tobytes() == draw(spec_for(tiny), tiny).tobytes()


# Guidance


def test_guidance_outside_its_interval_costs_one_row(tiny: Model) -> None:
    spec = spec_for(tiny, steps=10, guidance=5, guidance_interval={"start": 0.3, "end": 0.6})
    with SteppedEngine() as job_service:
        job = job_service.add(spec, tiny)
        job_service.finish()
        assert [event.batch_rows for event in job_service.events_of(job, Stepped)] == [1, 1, 1, 2, 2, 2, 1, 1, 1, 1]
        assert psnr(job_service.image(job), draw(spec_for(tiny, steps=10, guidance=5), tiny)) < MIN_PSNR


# Highres


@pytest.mark.parametrize("upscaler", [*LATENT_MODES, "lanczos"])
def test_highres_draws_the_larger_picture_and_minds_its_seed(tiny: Model, upscaler: Any) -> None:
    highres = HighresFix(scale=1.5, strength=0.6, upscaler=upscaler)
    first, again, other = (draw(spec_for(tiny, seed=seed, highres=highres), tiny) for seed in (1, 1, 2))
    assert first.size == (96, 96)
    assert first.tobytes() == again.tobytes()
    assert psnr(first, other) < 30


def test_highres_and_plain_jobs_share_the_calls_of_one_size(tiny: Model) -> None:
    with SteppedEngine() as job_service:
        two_walks = job_service.add(spec_for(tiny, guidance=1, highres=HighresFix(scale=1.5)), tiny)
        plain = job_service.add(spec_for(tiny, guidance=1), tiny)
        large = job_service.add(spec_for(tiny, guidance=1, width=96, height=96), tiny)
        job_service.finish()
        assert {event.batch_rows for event in job_service.events_of(plain, Stepped)} == {2}
        assert {job_service.image(job).size for job in (two_walks, large)} == {(96, 96)}
        assert not any(isinstance(event, Failed) for event in job_service.events)


# Cancelling and pausing


def test_cancelling_takes_effect_at_the_next_step(tiny: Model) -> None:
    with SteppedEngine() as job_service:
        job, other = job_service.add(spec_for(tiny, steps=9), tiny), job_service.add(spec_for(tiny, steps=9), tiny)
        for _ in range(4):
            job_service.engine.step()
        job_service.engine.cancel(job.id)
        job_service.finish()
        assert job_service.last(job) == Cancelled(job_id=job.id, step=4)
        assert psnr(job_service.image(other), draw(other.spec, tiny)) >= MIN_PSNR


def test_a_job_is_cancelled_also_before_it_began_and_while_it_is_decoded(tiny: Model) -> None:
    with SteppedEngine() as job_service:
        early = job_service.add(spec_for(tiny), tiny)
        job_service.engine.cancel(early.id)
        late, neighbour = job_service.add(spec_for(tiny), tiny), job_service.add(spec_for(tiny), tiny)
        job_service.engine.pause(neighbour.id)  # with nobody else there, the engine's own thread decodes
        with tiny.vae_lock:  # the decoder has to wait
            while job_service.engine.step():
                pass
            assert late.state == "decoding"
            job_service.engine.cancel(late.id)
        job_service.engine.pause(neighbour.id, paused=False)
        job_service.finish()
        assert job_service.last(early) == Cancelled(job_id=early.id, step=0)
        assert job_service.last(late) == Cancelled(job_id=late.id, step=3)


def test_cancelling_what_has_ended_or_never_was_does_nothing(tiny: Model) -> None:
    with SteppedEngine() as job_service:
        job = job_service.add(spec_for(tiny), tiny)
        job_service.finish()
        job_service.engine.cancel(job.id)
        job_service.engine.cancel("nobody")
        job_service.engine.step()
        assert isinstance(job_service.last(job), Decoded)


def test_a_paused_job_goes_on_to_the_same_picture(tiny: Model) -> None:
    with SteppedEngine() as job_service:
        job = job_service.add(spec_for(tiny, sampler="Euler a"), tiny)
        job_service.engine.step()
        job_service.engine.pause(job.id)
        assert not job_service.engine.step()
        job_service.engine.pause(job.id, paused=False)
        job_service.finish()
        assert job_service.image(job).tobytes() == draw(spec_for(tiny, sampler="Euler a"), tiny).tobytes()


def test_steps_do_not_wait_for_the_decoder(tiny: Model) -> None:
    with SteppedEngine() as job_service:
        job, neighbour = job_service.add(spec_for(tiny), tiny), job_service.add(spec_for(tiny, steps=9), tiny)
        with tiny.vae_lock:
            for _ in range(6):
                job_service.engine.step()
            assert job.state == "decoding"
            assert neighbour.step == 6
        job_service.finish()


def test_closing_ends_every_job(tiny: Model) -> None:
    with SteppedEngine() as job_service:
        done, under_way = job_service.add(spec_for(tiny, steps=1), tiny), job_service.add(spec_for(tiny, steps=9), tiny)
        job_service.engine.step()
        job_service.engine.close()
        assert isinstance(job_service.last(done), Decoded), "what is finished is decoded"
        assert job_service.last(under_way) == Cancelled(job_id=under_way.id, step=1)


# Failures


def break_down(_output: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("a kernel went wrong")


@pytest.mark.parametrize(
    ("fault", "why"),
    [(break_down, "a kernel went wrong"), (lambda output: output * float("nan"), "NaN or infinite")],
    ids=["raises", "nan"],
)
@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "Euler a"])
def test_a_broken_job_harms_nobody(tiny: Model, fault: Any, why: str, sampler: str, caplog: Any) -> None:
    with SteppedEngine(faulty(fault, prompt=encoded(tiny, BAD))) as job_service:
        bad = job_service.add(spec_for(tiny, prompt=BAD), tiny)
        good = [job_service.add(spec_for(tiny, seed=seed, sampler=sampler), tiny) for seed in range(3)]
        job_service.finish()
        failed = job_service.last(bad)
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, JobFailed)
        assert why in str(failed.error)
        for job in good:
            assert psnr(job_service.image(job), draw(job.spec, tiny)) >= MIN_PSNR
            assert [event.step for event in job_service.events_of(job, Stepped)] == [1, 2, 3], (
                "nobody took a step twice"
            )


def test_a_job_that_cannot_begin_harms_nobody(tiny: Model) -> None:
    impossible = [
        ({"clip_skip": 12}, UnsupportedOption, "clip_skip"),
        ({"sampler": "Flow Euler"}, UnsupportedOption, "flow"),
        ({"init": INIT, "strength": 0.05}, UnsupportedOption, "strength"),
        ({"init": "c" * 64}, SafelightError, ""),
    ]
    with SteppedEngine() as job_service:
        jobs = [job_service.add(spec_for(tiny, **wishes), tiny, PICTURES) for wishes, _, _ in impossible]
        good = job_service.add(spec_for(tiny), tiny)
        job_service.finish()
        assert isinstance(job_service.last(good), Decoded)
        for job, (_, kind, word) in zip(jobs, impossible, strict=True):
            failed = job_service.last(job)
            assert isinstance(failed, Failed)
            assert isinstance(failed.error, kind)
            assert word in str(failed.error)


def test_an_inpainting_network_says_that_it_needs_a_mask(model: Models) -> None:
    with SteppedEngine() as job_service:
        jobs = [
            job_service.add(spec_for(model("inpaint"), **w), model("inpaint"), PICTURES) for w in ({}, {"init": INIT})
        ]
        job_service.finish()
        for job in jobs:
            failed = job_service.last(job)
            assert isinstance(failed, Failed)
            assert "mask" in str(failed.error)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_out_of_memory_halves_the_batch_and_loses_nothing(tiny: Model, error: Any) -> None:
    specs = [spec_for(tiny, seed=seed, sampler="Euler a" if seed % 2 else "Euler") for seed in range(7)]
    with SteppedEngine(out_of_memory_above(4, error)) as job_service:
        jobs = [job_service.add(spec, tiny) for spec in specs]
        job_service.finish()
        for job in jobs:
            assert psnr(job_service.image(job), draw(job.spec, tiny)) >= MIN_PSNR
            assert [event.step for event in job_service.events_of(job, Stepped)] == [1, 2, 3]
        assert max(event.batch_rows for event in job_service.events_of(jobs[0], Stepped)) <= 4


def test_a_picture_that_does_not_fit_alone_fails_and_says_so(tiny: Model) -> None:
    with SteppedEngine(out_of_memory_above(1)) as job_service:
        guided, plain = (
            job_service.add(spec_for(tiny, guidance=5), tiny),
            job_service.add(spec_for(tiny, guidance=1), tiny),
        )
        job_service.finish()
        failed = job_service.last(guided)
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, OutOfMemory)
        assert "smaller" in str(failed.error)
        assert isinstance(job_service.last(plain), Decoded)


def test_a_decoder_that_fails_for_one_decodes_the_others(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from safelight.engine import decoder

    plain = decoder.decode
    poisoned: list[torch.Tensor] = []

    def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
        if any(torch.equal(latent, poisoned[0]) for latent in latents):
            raise MemoryError
        return plain(vae, latents)

    monkeypatch.setattr(decoder, "decode", decode)
    with SteppedEngine() as job_service:
        jobs = [job_service.add(spec_for(tiny, seed=seed), tiny) for seed in range(3)]
        longer = job_service.add(spec_for(tiny, steps=9), tiny)
        with tiny.vae_lock:
            while any(job.state != "decoding" for job in jobs):
                job_service.engine.step()
            poisoned.append(jobs[1].now.latents[0])
        job_service.finish()
        assert [type(job_service.last(job)) for job in (*jobs, longer)] == [Decoded, Failed, Decoded, Decoded]
        failed = job_service.last(jobs[1])
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, OutOfMemory)


def test_a_call_tried_again_draws_no_noise_twice(tiny: Model) -> None:
    """The generator has advanced when the first attempt fails; the second one uses the same noise."""
    tries: list[int] = []

    def denoiser_for(model: Model) -> Any:
        from safelight.models.backends.eager import eager_denoiser

        denoise = eager_denoiser(model)

        def once(*given: Any) -> torch.Tensor:
            tries.append(1)
            return denoise(*given)

        return once

    with SteppedEngine(denoiser_for) as job_service:
        job = job_service.add(spec_for(tiny, sampler="Euler a"), tiny)
        fail_first_update(job_service.engine, tries)
        job_service.finish()
        assert len(tries) > 3
        assert psnr(job_service.image(job), draw(job.spec, tiny)) >= MIN_PSNR


def fail_first_update(engine: Engine, tries: list[int]) -> None:
    """Out of memory in the update of the first call, after the noise was drawn; the picture must not change."""
    noise = engine.runner.noise

    def failing(batch: Any) -> Any:
        drawn = noise(batch)
        if len(tries) == 1:
            raise torch.OutOfMemoryError
        return drawn

    engine.runner.noise = failing
    engine.scheduler.halve_budget = lambda batch: True


def test_inpainting_keeps_what_the_mask_leaves_alone(tiny: Model) -> None:
    spec = spec_for(tiny, init=INIT, mask=MASK, mask_blur=0.0, width=SIDE, height=SIDE)
    drawn = draw(spec, tiny, PICTURES)
    left_alone = np.asarray(PICTURES[MASK]) == 0
    assert (np.asarray(drawn)[left_alone] == np.asarray(PICTURES[INIT])[left_alone]).all()
    assert (np.asarray(drawn)[~left_alone] != np.asarray(PICTURES[INIT])[~left_alone]).any(axis=1).mean() > 0.9


def test_a_mask_turned_round_draws_the_rest(tiny: Model) -> None:
    wishes = {"init": INIT, "mask": MASK, "width": SIDE, "height": SIDE, "mask_blur": 0.0}
    inverted = {INIT: PICTURES[INIT], MASK: PICTURES[MASK].point(lambda level: 255 - level)}
    one = draw(spec_for(tiny, **wishes, mask_invert=True), tiny, PICTURES)
    other = draw(spec_for(tiny, **wishes), tiny, inverted)
    assert one.tobytes() == other.tobytes()


def test_the_time_of_a_call_is_shared_by_rows(tiny: Model) -> None:
    with SteppedEngine() as job_service:
        plain, guided = (
            job_service.add(spec_for(tiny, guidance=1), tiny),
            job_service.add(spec_for(tiny, guidance=5), tiny),
        )
        began = time.perf_counter()
        job_service.finish()
        took = time.perf_counter() - began
        assert guided.compute_s == pytest.approx(2 * plain.compute_s)
        assert plain.compute_s + guided.compute_s <= took


def test_two_models_take_turns(model: Models) -> None:
    with SteppedEngine() as job_service:
        jobs: list[Job] = [
            job_service.add(spec_for(model(kind)), model(kind)) for kind in ("sd1", "sdxl", "sd1", "sdxl")
        ]
        job_service.finish()
        for job in jobs:
            assert psnr(job_service.image(job), draw(job.spec, job.model)) >= MIN_PSNR
