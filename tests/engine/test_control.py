"""Rows of one network call with different ControlNets and IP-Adapters: pictures, batches, and ranges of steps."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.control_files import (
    HINT,
    LOOK,
    OTHER_HINT,
    OTHER_LOOK,
    PICTURES,
    adapters_in,
    control,
    controlled,
    controlnet,
    picture_led,
    t2i_adapter,
    union,
    write_encoder,
    write_folder,
    write_ip_adapter,
    write_ldm,
)
from tests.fakes import Steering, SteppedEngine, draw, psnr, spec_for
from tests.lora_files import active, write_kohya
from tests.tiny_models import INIT, MASK, box_mask, load, start_picture

from safelight.events import Stepped
from safelight.models.adapters.control_effect import COST, ActiveControl, ActiveControls
from safelight.models.backends.packed import packed_denoiser
from safelight.models.networks.load import Model

Models = Callable[[str], Model]
Leads = Callable[..., Steering]
MIN_PSNR = 60.0
"""The guaranteed PSNR, as for pictures without control. Measured: 75 dB and more."""
EVERY = {**PICTURES, INIT: start_picture(), MASK: box_mask((16, 8, 48, 40))}


@pytest.fixture(scope="module")
def leads(model: Models, tmp_path_factory: pytest.TempPathFactory) -> Leads:
    """ControlNets and adapters by name: `net`, `other`, `ldm`, `t2i`, `union`, `base`, `plus`."""
    home = tmp_path_factory.mktemp("leads")

    @cache
    def net(kind: str, name: str) -> ActiveControl:
        ours, folder = model(kind), home / f"{kind} {name}"
        if name == "t2i":
            return control(write_folder(folder, t2i_adapter(ours)), ours)
        if name == "union":
            return control(write_folder(folder, union(ours)), ours)
        made = controlnet(ours, seed=len(name))
        if name == "ldm":
            return control(write_ldm(folder.with_suffix(".safetensors"), made), ours)
        return control(write_folder(folder, made), ours)

    @cache
    def shelf(kind: str) -> Any:
        root = home / f"{kind} models"
        encoder = write_encoder(root / "ip-adapters" / "image_encoder")
        for name in ("base", "plus"):
            write_ip_adapter(root / "ip-adapters" / f"{name}.safetensors", model(kind), kind=name, encoder=encoder)
        return adapters_in(root)

    def lead(kind: str, *names: str, **use: Any) -> Steering:
        led = Steering()
        for name in names:
            if name in ("base", "plus"):
                more = picture_led(shelf(kind), model(kind), name, **use).pictures
                led = replace(led, pictures=led.pictures + more)
            else:
                one = net(kind, name)
                led = replace(led, controls=(*led.controls, ActiveControl(one.net, one.pinned.model_copy(update=use))))
        return led

    return lead


def drawn(model: Model, led: Steering, **wishes: Any) -> Image.Image:
    with SteppedEngine() as job_service:
        job = job_service.add(controlled(spec_for(model, **wishes), led), model, EVERY, led=led)
        job_service.finish()
        return job_service.image(job)


def company(leads: Leads, kind: str) -> list[Steering]:
    """All different: one net or several, hints, weights, modes, ranges of steps, IP-Adapters, and nothing."""
    sets = [
        leads(kind, "net"),
        leads(kind, "net", image=OTHER_HINT, hint=OTHER_HINT, weight=0.6, mode="prompt"),
        leads(kind, "other", mode="control", end=0.5),
        leads(kind, "net", "other", "ldm", weight=0.5),
        leads(kind, "net", "net", weight=0.4),
        leads(kind, "base", weight=0.8),
        leads(kind, "plus", image=OTHER_LOOK, start=0.25, weight=3.0),
        replace(leads(kind, "ldm", weight=0.7), pictures=leads(kind, "base", "plus", weight=0.5).pictures),
        Steering(),
    ]
    # An adapter needs the blocks of its family's UNet; that of the tiny SDXL has them.
    if kind == "sd1":
        return sets
    # A union needs what only SDXL is told; here with two kinds of hints in one call, and twice in one row.
    unions = [leads(kind, "union", hint_kind=hint, weight=0.7) for hint in ("depth", "hard-edge")]
    twice = replace(unions[0], controls=unions[0].controls + unions[1].controls)
    more = [leads(kind, "t2i", weight=2.0), leads(kind, "net", "t2i"), *unions, twice]
    return [*sets[:-1], *more, Steering()]


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_rows_led_by_different_pictures_draw_what_each_draws_alone(kind: str, model: Models, leads: Leads) -> None:
    ours, sets = model(kind), company(leads, kind)
    # Prompts of unlike length, too: a ControlNet takes no mask.
    words = "a photo of the red apple " * 20
    wishes = [
        {"seed": i, "steps": 4 + i % 2, "guidance": (1.0, 4.0)[i % 2], "prompt": words if i % 3 == 0 else "an apple"}
        for i in range(len(sets))
    ]
    with SteppedEngine() as job_service:
        jobs = [
            job_service.add(controlled(spec_for(ours, **wish), led), ours, EVERY, led=led)
            for led, wish in zip(sets, wishes, strict=True)
        ]
        job_service.finish()
        together = [job_service.image(job) for job in jobs]
        rows = max(event.batch_rows for event in job_service.events_of(jobs[0], Stepped))
    assert rows == len(sets) + len(sets) // 2, "all in one call, every other one guided"
    alone = [drawn(ours, led, **wish) for led, wish in zip(sets, wishes, strict=True)]
    assert min(psnr(a, b) for a, b in zip(alone, together, strict=True)) >= MIN_PSNR
    without = [draw(spec_for(ours, **wish), ours) for wish in wishes]
    differences = [psnr(a, b) for a, b in zip(alone, without, strict=True)]
    assert max(differences[:-1]) < 50
    assert differences[-1] == float("inf")


def test_rows_without_control_have_their_very_bits_in_a_batch_of_the_same_shape(model: Models, leads: Leads) -> None:
    """Zeros are added to rows without control, so they are the same beside rows with control and without."""
    ours = model("sd1")

    def beside(led: Steering) -> bytes:
        with SteppedEngine() as job_service:
            job = job_service.add(spec_for(ours, seed=1), ours)
            job_service.add(controlled(spec_for(ours, seed=2), led), ours, EVERY, led=led)
            job_service.finish()
            return job_service.image(job).tobytes()

    assert beside(Steering()) == beside(leads("sd1", "net", "other")) == beside(leads("sd1", "base", "plus"))


def test_control_and_lora_and_picture_act_together_over_packed_weights(
    checkpoint: Callable[[str], Path], leads: Leads, tmp_path: Path
) -> None:
    """On its own copy of the model, since packing replaces the forward methods of its layers permanently."""
    ours = load(checkpoint("sd1"))
    led = replace(leads("sd1", "net"), pictures=leads("sd1", "base").pictures)
    lora = active(write_kohya(tmp_path / "lora.safetensors", ours), ours)
    spec = controlled(spec_for(ours), led).model_copy(update={"loras": (lora.pinned,)})

    def picture(*denoiser: Any) -> Image.Image:
        with SteppedEngine(*denoiser) as job_service:
            job = job_service.add(spec, ours, EVERY, led=led, loras=(lora,))
            job_service.finish()
            return job_service.image(job)

    eager = picture()
    assert psnr(picture(packed_denoiser), eager) >= MIN_PSNR
    for less in (drawn(ours, led), drawn(ours, replace(led, pictures=())), drawn(ours, replace(led, controls=()))):
        assert psnr(less, eager) < 45


def test_a_span_is_the_steps_that_lie_inside(model: Models, leads: Leads) -> None:
    ours = model("sd1")
    led = replace(leads("sd1", "net", start=0.2, end=0.6), pictures=leads("sd1", "base", end=0.5).pictures)
    acts = []
    with SteppedEngine() as job_service:
        job = job_service.add(controlled(spec_for(ours, steps=5), led), ours, EVERY, led=led)
        job_service.engine.begin([job])
        while job.state == "running":
            acts.append(tuple(bool(job.effect_row(name, "cond")) for name in ("controls", "picture_prompts")))
            job_service.engine.step()
    assert acts == [(False, True), (True, True), (True, False), (False, False), (False, False)]


def test_weight_0_is_nothing_and_costs_no_call(model: Models, leads: Leads) -> None:
    ours = model("sd1")
    nothing = replace(leads("sd1", "net", weight=0.0), pictures=leads("sd1", "base", weight=0.0).pictures)
    assert drawn(ours, nothing).tobytes() == draw(spec_for(ours), ours).tobytes()


def test_the_second_pass_is_led_too(model: Models, leads: Leads) -> None:
    ours, led = model("sd1"), leads("sd1", "net")
    highres = {"highres": {"scale": 1.5, "strength": 0.7}}
    large = drawn(ours, led, **highres)
    assert large.size == (96, 96)
    with SteppedEngine() as job_service:
        job = job_service.add(controlled(spec_for(ours, **highres), led), ours, EVERY, led=led)
        while not job.enlarged:
            job_service.engine.step()
        controls = job.now.effects["controls"]
        assert isinstance(controls, ActiveControls)
        blank = tuple((torch.zeros_like(part[0]),) for part in controls.features)
        job.now.effects = {"controls": replace(controls, features=blank)}
        job_service.finish()
        assert psnr(job_service.image(job), large) < MIN_PSNR, "in the second pass it made no difference"


def test_where_only_the_masked_part_is_drawn_the_hint_is_cut_alike(model: Models, leads: Leads) -> None:
    """The net gets only the part of the hint inside the box, which is all white here."""
    ours, led = model("sd1"), leads("sd1", "net", fit="stretch")
    mask = box_mask((0, 0, 32, 32))
    wishes = {"init": INIT, "mask": MASK, "only_masked": True, "padding": 0, "width": 64, "height": 64}
    pictures = {**EVERY, MASK: mask}
    images = []
    for hint in (box_mask((0, 0, 32, 32)), Image.new("L", (64, 64), 255)):
        with SteppedEngine() as job_service:
            spec = controlled(spec_for(ours, **wishes), led)
            job = job_service.add(spec, ours, {**pictures, HINT: hint.convert("RGB")}, led=led)
            job_service.finish()
            images.append(job_service.image(job).tobytes())
    assert images[0] == images[1]


def test_a_controlnet_counts_in_what_a_call_may_hold(model: Models, leads: Leads) -> None:
    ours = model("sd1")
    with SteppedEngine() as job_service:
        plain, led = (
            job_service.add(controlled(spec_for(ours), led), ours, EVERY, led=led)
            for led in (Steering(), leads("sd1", "net", "other"))
        )
        assert led.megapixels == pytest.approx(plain.megapixels * (1 + 2 * COST))


@pytest.mark.parametrize("kind", ["net", "base"])
def test_jobs_hold_what_leads_their_spec(kind: str, model: Models, leads: Leads) -> None:
    """A spec with controls must not be drawn if the controls were not loaded."""
    ours, led = model("sd1"), leads("sd1", kind)
    with SteppedEngine() as job_service:
        job = job_service.add(controlled(spec_for(ours), led), ours, EVERY)
        job_service.finish()
        assert "were not" in str(job_service.last(job))


def test_pictures_are_read_once_and_hooks_stay_where_they_are(model: Models, leads: Leads) -> None:
    ours = model("sd1")
    one, other = leads("sd1", "base"), leads("sd1", "base", weight=0.3)
    assert one.pictures[0].positive is other.pictures[0].positive
    assert one.pictures[0].positive is not leads("sd1", "base", image=OTHER_LOOK).pictures[0].positive
    assert PICTURES[LOOK].tobytes() != PICTURES[OTHER_LOOK].tobytes()
    drawn(ours, one)
    hooked = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in ours.unet.modules())
    drawn(ours, other)
    assert hooked == sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in ours.unet.modules())
