"""Rows of one network call with different LoRAs: pictures, batches, and memory that must be freed."""

import gc
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tests.fakes import SteppedEngine, draw, psnr, spec_for
from tests.lora_files import CONVOLUTIONS, LINEAR, Make, active, dora, locon_cp, loha, lokr, lora, write_kohya
from tests.tiny_models import load

from safelight.engine.job import Job
from safelight.events import Stepped
from safelight.models.adapters.lora_effect import ActiveLora
from safelight.models.adapters.lora_merge import merge
from safelight.models.backends.denoiser import Conditions
from safelight.models.backends.eager import eager_denoiser
from safelight.models.backends.packed import packed_denoiser
from safelight.models.hooks.adapters import KEPT_STACKS, Adapters, Row
from safelight.models.hooks.hook import EffectRows
from safelight.models.networks.load import Model
from safelight.spec import Denoised

Models = Callable[[str], Model]
Loras = Callable[..., ActiveLora]
Checkpoints = Callable[[str], Path]
MIN_PSNR = 60.0
"""The guaranteed PSNR, as for pictures without LoRA. Measured: 80 dB and more."""
MAKERS: dict[str, Make] = {
    "LoRA": lora,
    "LoRA of rank 7": partial(lora, rank=7),
    "LoCon CP": locon_cp,
    "LoHa": loha,
    "LoHa of large rank": partial(loha, rank=6),
    "LoKr": lokr,
    "DoRA": dora,
    "DoRA by input": partial(dora, by_input=True),
}
EVERYTHING = (*LINEAR, *CONVOLUTIONS)


@pytest.fixture(scope="module")
def loaded(model: Models, tmp_path_factory: pytest.TempPathFactory) -> Loras:
    """A LoRA by its algorithm's name, loaded for a kind of model."""
    folder = tmp_path_factory.mktemp("loras")

    @cache
    def once(kind: str, name: str) -> ActiveLora:
        path = folder / f"{kind} {name}.safetensors"
        return active(write_kohya(path, model(kind), MAKERS[name], endings=EVERYTHING, seed=len(name)), model(kind))

    def with_use(kind: str, name: str, **use: Any) -> ActiveLora:
        found = once(kind, name)
        return ActiveLora(found.lora, found.pinned.model_copy(update=use))

    return with_use


def spec_with(model: Model, loras: tuple[ActiveLora, ...], **wishes: Any) -> Denoised:
    return spec_for(model, **wishes).model_copy(update={"loras": tuple(active.pinned for active in loras)})


def drawn(model: Model, *loras: ActiveLora, **wishes: Any) -> Any:
    with SteppedEngine() as job_service:
        job = job_service.add(spec_with(model, loras, **wishes), model, loras=loras)
        job_service.finish()
        return job_service.image(job)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_lora_draws_what_the_merged_weights_draw(kind: str, name: str, model: Models, loaded: Loras) -> None:
    ours = model(kind)
    one = loaded(kind, name, weight=0.8, text_weight=0.5)
    fixed = merge(ours, [one], name="merged")
    assert fixed.digest != ours.digest
    ink = drawn(ours, one)
    assert psnr(ink, draw(spec_for(fixed), fixed)) >= MIN_PSNR
    assert psnr(ink, draw(spec_for(ours), ours)) < 30, "a LoRA that changes nothing shows nothing"


def test_packed_weights_take_loras_and_merges_do_not_keep_them(checkpoint: Checkpoints, loaded: Loras) -> None:
    """On its own copy of the model, since packing replaces the forward methods of its layers permanently."""
    ours = load(checkpoint("sd1"))
    several = (loaded("sd1", "LoRA"), loaded("sd1", "DoRA", weight=0.5))
    spec = spec_with(ours, several)
    with SteppedEngine(packed_denoiser) as job_service:
        job = job_service.add(spec, ours, loras=several)
        job_service.finish()
        packed = job_service.image(job)
    fixed = merge(ours, several, name="merged")
    assert psnr(packed, draw(spec_for(fixed), fixed)) >= MIN_PSNR


def test_several_loras_add_up(model: Models, loaded: Loras) -> None:
    ours = model("sd1")
    several = (loaded("sd1", "LoRA", weight=0.5), loaded("sd1", "LoKr", weight=-0.4), loaded("sd1", "DoRA", weight=0.3))
    fixed = merge(ours, several, name="merged")
    assert psnr(drawn(ours, *several), draw(spec_for(fixed), fixed)) >= MIN_PSNR


def test_a_merged_model_takes_further_loras(model: Models, loaded: Loras) -> None:
    """The merged model has its own network, to which the first model's hooks do not apply."""
    ours, one, more = model("sd1"), loaded("sd1", "LoRA", weight=0.5), loaded("sd1", "LoKr", weight=-0.4)
    both = drawn(ours, one, more)
    fixed = merge(ours, [one], name="merged")
    assert psnr(both, drawn(fixed, more)) >= MIN_PSNR
    assert psnr(both, drawn(fixed)) < MIN_PSNR


def company(loaded: Loras, kind: str) -> list[tuple[ActiveLora, ...]]:
    """Eight different sets: all algorithms, one LoRA or several, different weights, and none."""
    names = list(MAKERS)
    lone = [(loaded(kind, name, weight=0.3 + 0.1 * i),) for i, name in enumerate(names[:5])]
    both = (loaded(kind, "LoRA", weight=0.5), loaded(kind, "LoKr", weight=0.2))
    parts = (loaded(kind, "LoRA", weight=0.9, blocks={"down": 0.0, "IN01": 1.0, "up": 0.3}, start=0.3),)
    return [*lone, both, parts, ()]


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_eight_rows_with_eight_sets_draw_what_each_draws_alone(kind: str, model: Models, loaded: Loras) -> None:
    ours = model(kind)
    sets = company(loaded, kind)
    wishes = [{"seed": i, "steps": 4 + i % 2, "guidance": (1.0, 4.0)[i % 2]} for i in range(len(sets))]
    with SteppedEngine() as job_service:
        jobs = [
            job_service.add(spec_with(ours, loras, **wish), ours, loras=loras)
            for loras, wish in zip(sets, wishes, strict=True)
        ]
        job_service.finish()
        together = [job_service.image(job) for job in jobs]
        rows = max(event.batch_rows for event in job_service.events_of(jobs[0], Stepped))
    assert rows == 12, "all eight in one call, four of them guided"
    alone = [drawn(ours, *loras, **wish) for loras, wish in zip(sets, wishes, strict=True)]
    assert min(psnr(a, b) for a, b in zip(alone, together, strict=True)) >= MIN_PSNR
    without = [draw(spec_for(ours, **wish), ours) for wish in wishes]
    differences = [psnr(a, b) for a, b in zip(alone, without, strict=True)]
    assert max(differences[:-1]) < 40
    assert differences[-1] == float("inf")


def test_sets_of_unlike_size_draw_what_each_draws_alone(model: Models, loaded: Loras) -> None:
    """Seven rows of one set, two of another, one of a third, one without: some sets need more than one slot."""
    ours = model("sd1")
    one, two, three = (loaded("sd1", name) for name in ("LoRA", "LoRA of rank 7", "DoRA"))
    sets = [(one,)] * 7 + [(two,)] * 2 + [(three, one), ()]
    wishes = [{"seed": i, "guidance": 1.0} for i in range(len(sets))]
    with SteppedEngine() as job_service:
        jobs = [job_service.add(spec_with(ours, s, **w), ours, loras=s) for s, w in zip(sets, wishes, strict=True)]
        job_service.finish()
        together = [job_service.image(job) for job in jobs]
    chosen = (0, 6, 8, 9, 10)
    alone = {i: drawn(ours, *sets[i], **wishes[i]) for i in chosen}
    assert min(psnr(alone[i], together[i]) for i in chosen) >= MIN_PSNR


def test_neighbours_with_loras_leave_a_strict_picture_as_it_is(model: Models, loaded: Loras) -> None:
    ours, one = model("sd1"), loaded("sd1", "LoRA")
    alone = drawn(ours, one, determinism="strict")
    with SteppedEngine() as job_service:
        others = company(loaded, "sd1")
        for loras in others:
            job_service.add(spec_with(ours, loras), ours, loras=loras)
        job = job_service.add(spec_with(ours, (one,), determinism="strict"), ours, loras=(one,))
        job_service.finish()
        assert job_service.image(job).tobytes() == alone.tobytes()


def test_the_network_is_left_as_it_was(model: Models, loaded: Loras) -> None:
    ours = model("sd1")
    before = {name: tensor.clone() for name, tensor in ours.unet.state_dict().items()}
    plain = draw(spec_for(ours), ours)
    drawn(ours, loaded("sd1", "DoRA"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.unet.state_dict().items())
    assert draw(spec_for(ours), ours).tobytes() == plain.tobytes()


def test_a_range_of_steps_is_one_in_which_it_acts(model: Models, loaded: Loras) -> None:
    """A LoRA of the UNet acts in the first half of four steps: two steps with it, then two without."""
    ours = model("sd1")
    half = loaded("sd1", "LoRA", end=0.5, text_weight=0.0)
    with SteppedEngine() as job_service:
        job = job_service.add(spec_with(ours, (half,), steps=4), ours, loras=(half,))
        job_service.engine.step()
        acts = [bool(job.effect_row("loras", "cond"))]
        for _ in range(3):
            acts.append(bool(job.effect_row("loras", "cond")))
            job_service.engine.step()
    assert acts == [True, True, False, False]
    whole, none = (loaded("sd1", "LoRA", text_weight=0.0, **use) for use in ({}, {"weight": 0.0}))
    pictures = [drawn(ours, each, steps=4) for each in (half, whole, none)]
    assert all(psnr(pictures[0], other) < MIN_PSNR for other in pictures[1:])


def test_weights_by_block_reach_their_block_alone(model: Models, loaded: Loras) -> None:
    ours = model("sd1")
    zero = dict.fromkeys(("down", "mid", "up", "BASE"), 0.0)
    nothing = loaded("sd1", "LoRA", blocks=zero)
    only_middle = loaded("sd1", "LoRA", blocks=zero | {"M00": 1.0})
    merged = merge(ours, [only_middle], name="merged")
    changed = {
        path.split(".")[0]
        for path, weight in merged.unet.state_dict().items()
        if not torch.equal(weight, ours.unet.state_dict()[path])
    }
    assert changed == {"mid_block"}
    assert psnr(drawn(ours, only_middle), draw(spec_for(merged), merged)) >= MIN_PSNR
    assert psnr(drawn(ours, nothing), draw(spec_for(ours), ours)) == float("inf")


def test_a_lora_changes_the_words_of_its_own_job_alone(model: Models, loaded: Loras) -> None:
    """The same prompt with and without LoRA, and with another weight: the cache must keep them apart."""
    ours = model("sd1")
    several = [loaded("sd1", "LoRA", weight=0.0, text_weight=weight) for weight in (1.0, 0.5, 0.0)]
    with SteppedEngine() as job_service:
        jobs = [job_service.add(spec_with(ours, (one,)), ours, loras=(one,)) for one in several]
        jobs.append(job_service.add(spec_for(ours), ours))
        job_service.engine.step()
        states = [job.encoded.positive[0][0].context for job in jobs if job.encoded is not None]
    assert not torch.allclose(states[0], states[1], atol=1e-2)
    assert not torch.allclose(states[1], states[3], atol=1e-2)
    torch.testing.assert_close(states[2], states[3])


def test_rows_without_lora_keep_what_they_had(model: Models, loaded: Loras) -> None:
    """In the same call as a row with a LoRA, equal up to rounding."""
    ours, one = model("sd1"), loaded("sd1", "LoRA")
    latents, timesteps = torch.randn(3, 4, 16, 16), torch.tensor([900.0, 500.0, 100.0])

    def call(adapters: list[Row] | None) -> torch.Tensor:
        context = torch.ones(3, 77, 32)
        conditions = Conditions(
            context=context, mask=None, pooled=None, time_ids=None, guidance=None, effects=lora_rows(adapters)
        )
        with torch.inference_mode():
            return eager_denoiser(ours)(latents, timesteps, conditions)

    plain, mixed = call(None), call([(), one.on_unet(0.0), ()])
    torch.testing.assert_close(mixed[[0, 2]], plain[[0, 2]])
    assert (mixed[1] - plain[1]).abs().max() > 0.01


def lora_rows(rows: list[Row] | None) -> dict[str, EffectRows]:
    return {} if rows is None else {"loras": EffectRows(Adapters, rows)}


def lora_hook(model: Model) -> Adapters:
    hook = model.hooks["loras"]
    assert isinstance(hook, Adapters)
    return hook


@pytest.fixture
def hooks(model: Models) -> Callable[[], int]:
    ours = model("sd1")
    return lambda: sum(len(module._forward_hooks) for module in ours.unet.modules())


def test_a_thousand_swaps_leave_nothing_behind(
    model: Models, tmp_path: Path, hooks: Callable[[], int], loaded: Loras
) -> None:
    """A thousand LoRAs, each loaded, used in one call with others and dropped."""
    ours = model("sd1")
    paths = [write_kohya(tmp_path / f"{i}.safetensors", ours, seed=i, text=False) for i in range(4)]
    denoise, steady = eager_denoiser(ours), loaded("sd1", "LoRA").on_unet(0.0)
    process = psutil.Process()

    def swap(i: int) -> None:
        fresh = active(paths[i % len(paths)], ours).on_unet(0.0)
        conditions = Conditions(
            context=torch.ones(3, 4, 32),
            mask=None,
            pooled=None,
            time_ids=None,
            guidance=None,
            effects=lora_rows([fresh, (), steady]),
        )
        with torch.inference_mode():
            denoise(torch.zeros(3, 4, 4, 4), torch.full((3,), 500.0), conditions)

    for i in range(100):
        swap(i)
    gc.collect()
    before, hooked, tensors = process.memory_info().rss, hooks(), count_tensors()
    for i in range(1000):
        swap(i)
    gc.collect()
    assert hooks() == hooked
    assert len(lora_hook(ours).stacks) <= KEPT_STACKS
    assert count_tensors() <= tensors + 100, "a LoRA of this size has 500 tensors"
    # One LoRA is 0.1 MB in memory: had all stayed, this would be 100 MB.
    assert process.memory_info().rss - before < 20e6


def count_tensors() -> int:
    """By type, since `isinstance` triggers the warnings of deprecated lazy objects."""
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_jobs_hold_the_loras_of_their_spec(model: Models, loaded: Loras) -> None:
    """A spec with LoRAs must not be drawn if the LoRAs were not loaded."""
    ours, one = model("sd1"), loaded("sd1", "LoRA")
    with SteppedEngine() as job_service:
        job: Job = job_service.add(spec_with(ours, (one,)), ours)
        job_service.finish()
        assert "were not loaded" in str(job_service.last(job))
