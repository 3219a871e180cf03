"""A picture depends on its spec and not on the other jobs of its batches: alone, or with fifteen that come and go."""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes import SteppedEngine, draw, psnr, spec_for
from tests.tiny_models import INIT, MASK, SIDE, box_mask, start_picture

from safelight.events import Stepped
from safelight.models.networks.load import Model
from safelight.prompts.prompt_schedule import parts_of
from safelight.spec import Denoised

PICTURES = {INIT: start_picture(), MASK: box_mask((16, 8, 48, 40))}
MIN_PSNR = 60.0
"""The guaranteed PSNR. Kernels change the last bits with the batch size, and a few pixels by one level: over 70 dB."""

LONG = "a photo of the red apple, " * 15
"""Two chunks, so that the other prompts are padded and masked to this length."""
TWO = "a [cat|dog] :0.8 AND a horse, best quality :0.4"

REGIONS = (
    {"prompt": "the cat", "box": (0, 0, 0.6, 1)},
    {"prompt": "a [dog:horse:2]", "mask": MASK, "weight": 0.5, "blur": 3},
)
SAMPLERS = ("Euler a", "DPM++ 2M Karras", "DPM++ 2M SDE", "Heun", "UniPC", "DDIM", "PLMS")


@st.composite
def wishes(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a random request, usually at the common size."""
    wish: dict[str, Any] = {
        "prompt": draw(
            st.sampled_from(
                ["", "the cat", "a (red:1.3) apple", LONG, "a dog BREAK a horse", "a [cat:dog:0.5], [red|]", TWO]
            )
        ),
        "negative_prompt": draw(st.sampled_from(["", "the dog", LONG, "[the dog::2]"])),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "sampler": draw(st.sampled_from(SAMPLERS)),
        "steps": draw(st.sampled_from([3, 5])),
        "guidance": draw(st.sampled_from([1.0, 3.0, 7.5])),
        "guidance_rescale": draw(st.sampled_from([0.0, 0.7])),
        "guidance_interval": draw(st.sampled_from([{}, {"start": 0.4}, {"end": 0.5}])),
        "clip_skip": draw(st.integers(1, 2)),
        "width": draw(st.sampled_from([SIDE, SIDE, SIDE, 72])),
        "height": SIDE,
    }
    if draw(st.booleans()):
        wish["freeu"] = draw(st.sampled_from([{}, {"b1": 1.1, "s2": 0.5}]))
    if wish["prompt"] != TWO:
        wish["pag_scale"] = draw(st.sampled_from([0.0, 2.0]))
    wish["regions"] = draw(st.sampled_from([(), (), REGIONS[:1], REGIONS]))
    wish["sag_scale"] = draw(st.sampled_from([0.0, 0.75]))
    if draw(st.booleans()):
        return wish
    wish |= {"init": INIT, "strength": draw(st.sampled_from([0.7, 1.0]))}
    return wish | draw(st.sampled_from([{}, {"mask": MASK}, {"mask": MASK, "only_masked": True, "padding": 4}]))


@st.composite
def companies(draw: st.DrawFn) -> list[tuple[dict[str, Any], int, int | None, int, str]]:
    """Fifteen other jobs: fields, the calls before which they arrive and leave, priority, tenant."""
    return [
        (
            draw(wishes()),
            draw(st.integers(0, 8)),
            draw(st.one_of(st.none(), st.integers(1, 12))),
            draw(st.integers(0, 2)),
            draw(st.sampled_from("ABC")),
        )
        for _ in range(15)
    ]


def draw_in_company(
    spec: Denoised, model: Model, company: list[tuple[dict[str, Any], int, int | None, int, str]]
) -> tuple[Any, int]:
    """The picture, and the largest number of network rows in one of its calls."""
    with SteppedEngine(budget_megapixels=20 * SIDE * SIDE / 1e6) as job_service:
        job = job_service.add(spec, model, PICTURES)
        neighbours: dict[int, Any] = {}
        call = 0
        while job_service.engine.live:
            for number, (wish, arrives, leaves, priority, tenant) in enumerate(company):
                if arrives == call:
                    there = spec_for(model, **wish)
                    neighbours[number] = job_service.add(there, model, PICTURES, priority=priority, tenant=tenant)
                if leaves == call and number in neighbours:
                    job_service.engine.cancel(neighbours[number].id)
            job_service.engine.step()
            call += 1
        return job_service.image(job), max(event.batch_rows for event in job_service.events_of(job, Stepped))


bounded = settings(
    max_examples=5,
    deadline=None,
    # The same fifteen every time: a rare pixel at the border of the tolerance should not fail a build by chance.
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@bounded
@given(wish=wishes(), company=companies(), kind=st.sampled_from(["sd1", "sdxl"]))
def test_a_picture_in_company_is_the_picture_alone(
    wish: dict[str, Any], company: Any, kind: str, model: Callable[[str], Model]
) -> None:
    spec = spec_for(model(kind), **wish)
    together, _ = draw_in_company(spec, model(kind), company)
    assert psnr(together, draw(spec, model(kind), PICTURES)) >= MIN_PSNR


@bounded
@given(wish=wishes(), company=companies())
def test_a_strict_picture_in_company_is_the_picture_alone_to_the_bit(
    wish: dict[str, Any], company: Any, model: Callable[[str], Model]
) -> None:
    spec = spec_for(model("sd1"), **wish, determinism="strict")
    together, rows = draw_in_company(spec, model("sd1"), company)
    own_rows = len(parts_of(spec.prompt)) + 1 + len(spec.regions) + (spec.pag_scale > 0) + (spec.sag_scale > 0)
    assert rows <= own_rows, "a strict job shares its calls with nobody"
    assert together.tobytes() == draw(spec, model("sd1"), PICTURES).tobytes()


def test_company_is_kept(model: Callable[[str], Model]) -> None:
    """Different jobs do share calls: otherwise the tests above would pass without any batching."""
    company = [
        ({"seed": seed, "sampler": SAMPLERS[seed % len(SAMPLERS)], "steps": 4}, 0, None, 0, "A") for seed in range(9)
    ]
    _, rows = draw_in_company(spec_for(model("sd1"), guidance=1.0), model("sd1"), company)
    assert rows > 10


def test_a_job_among_neighbours_that_all_leave_is_left_alone(model: Callable[[str], Model]) -> None:
    company = [({"seed": seed, "steps": 6}, 0, 2, 0, "B") for seed in range(5)]
    spec = spec_for(model("sd1"), steps=6, sampler="Euler a")
    together, _ = draw_in_company(spec, model("sd1"), company)
    assert psnr(together, draw(spec, model("sd1"))) >= MIN_PSNR
