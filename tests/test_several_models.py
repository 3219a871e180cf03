"""Several models within one budget, and jobs of all of them at once."""

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from tests.control_files import colours_picture, controlnet, write_encoder, write_folder, write_ip_adapter
from tests.fakes import psnr
from tests.lora_files import write_kohya
from tests.models.vision.test_preprocessors import write_dpt
from tests.patience import PATIENCE_S, wait_in_loop_until, wait_until
from tests.tiny_models import checkpoint, load, model, one_thread

from safelight.api import Drawn, draw_all, run
from safelight.errors import CorruptModel, OutOfMemory, UnsupportedOption
from safelight.events import Event, Started, Stepped
from safelight.models.adapters.control import ControlNet
from safelight.models.adapters.control_effect import ControlEffect
from safelight.models.adapters.ip_adapter import PromptImageEncoder
from safelight.models.adapters.ip_effect import IpAdapterEffect
from safelight.models.adapters.lora_effect import LoraEffect
from safelight.models.hooks.picture_prompts import IpAdapter
from safelight.models.networks import pool as module
from safelight.models.networks.load import Model
from safelight.models.networks.memory import Allocation, Memory
from safelight.models.vision.preprocessors import Preprocessors
from safelight.pipeline import generate
from safelight.resolve.resolve import resolve
from safelight.settings import Settings
from safelight.spec import ControlRequest, Draft, LoraRequest, PicturePromptRequest
from safelight.studio import Studio, open_studio

__all__ = ["checkpoint", "model", "one_thread"]

NAMES = ("one", "two", "three")


@pytest.fixture
def studio(checkpoint: Callable[[str], Path], tmp_path: Path) -> Iterator[Studio]:
    """Three models of one size each, with weights of their own, and room for two and a half."""
    for number, name in enumerate(NAMES):
        folder = tmp_path / "models" / name
        shutil.copytree(checkpoint("sd1"), folder)
        change(folder, number)
    with open_studio(Settings(home=tmp_path, device="cpu")) as studio:
        studio.memory.budget_bytes = int(2.5 * size_of(studio, "one"))
        yield studio


def change(folder: Path, number: int) -> None:
    """Other weights, so that it is another model."""
    from safetensors.torch import load_file, save_file

    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.bias"] += 0.1 * number
    save_file(weights, path)


def size_of(studio: Studio, name: str) -> int:
    from safelight.models.backends.packed import packed_bytes

    pool = studio.models
    allocation = pool.allocation(
        name, pool.find(name).digest, extra=lambda size: packed_bytes(size.unet, pool.placement)
    )
    return allocation.size_bytes


def draft(model: str, **wishes: Any) -> Draft:
    return Draft(**{"prompt": "a photo of the red apple", "model": model, "steps": 3, "seed": 1} | wishes)


def drawn(studio: Studio, *drafts: Draft) -> list[Drawn]:
    return run(draw_all(drafts, studio))


def in_memory(studio: Studio) -> set[str]:
    assert {model.name for model in studio.models.loaded.values()} == {
        one.name for one in studio.memory.loaded() if one.kind == "model"
    }, "the ledger and the pool tell the same"
    return {model.name for model in studio.models.loaded.values()}


def test_the_size_is_known_before_a_model_is_loaded(studio: Studio) -> None:
    found = studio.models.find("one")
    loaded = load(found.path)
    networks = [loaded.unet, loaded.vae.network, *(encoder.network for encoder in loaded.text_encoders)]
    real = [sum(p.nbytes for p in network.parameters()) for network in networks]
    assert (found.size.total, found.size.unet) == (sum(real), real[0])


def test_the_model_not_used_for_longest_leaves_memory(studio: Studio) -> None:
    for name in ("one", "two", "one", "three"):
        drawn(studio, draft(name))
    assert in_memory(studio) == {"one", "three"}
    assert studio.memory.num_dropped == 1


def test_a_model_that_left_is_gone_and_comes_back_to_the_same_picture(studio: Studio) -> None:
    [first] = drawn(studio, draft("one"))
    gone = weakref.ref(studio.models.loaded[first.spec.model_digest].unet)
    drawn(studio, draft("two"), draft("three"))
    assert_gone(gone)
    [again] = drawn(studio, draft("one"))
    assert psnr(first.image, again.image) >= 60


def assert_gone(network: "weakref.ref[Any]") -> None:
    wait_until(lambda: gc.collect() >= 0 and network() is None)


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_part_that_stands_in_counts_and_is_gone_when_it_left(studio: Studio, part: str) -> None:
    studio.memory.budget_bytes = 2 * size_of(studio, "one")
    [first] = drawn(studio, draft("one", **{part: "two"}))
    [held] = [one for one in studio.memory.loaded() if one.kind == part]
    found = studio.models.find("two")
    two = load(found.path)
    real = [two.vae.network] if part == "vae" else [encoder.network for encoder in two.text_encoders]
    assert held.size_bytes == sum(p.nbytes for network in real for p in network.parameters())
    [loaded] = studio.parts.loaded.values()
    gone = weakref.ref((loaded[0] if part == "vae" else loaded.clips["text_encoder"]).network)
    del loaded
    drawn(studio, draft("two"), draft("three"))
    assert not studio.parts.loaded
    assert_gone(gone)
    [again] = drawn(studio, draft("one", **{part: "two"}))
    assert psnr(first.image, again.image) >= 60


LEADING: dict[str, tuple[type, str]] = {
    "control": (ControlNet, "network"),
    "ip-adapter": (IpAdapter, "projection"),
    "image-encoder": (PromptImageEncoder, "network"),
}
"""What is in memory of each kind, and its network."""


def led_by(kind: str, picture: str) -> dict[str, Any]:
    """The fields of a draft that bring such a network into memory."""
    if kind == "control":
        return {"controls": (ControlRequest(model="net", image=picture),)}
    return {"picture_prompts": (PicturePromptRequest(model="ip", image=picture),)}


@pytest.mark.parametrize("kind", ["control", "ip-adapter", "image-encoder"])
def test_what_leads_counts_and_is_gone_when_it_left(studio: Studio, kind: str, tmp_path: Path) -> None:
    one = load(studio.models.find("one").path)
    write_folder(tmp_path / "controlnets" / "net", controlnet(one))
    encoder = write_encoder(tmp_path / "ip-adapters" / "image_encoder")
    write_ip_adapter(tmp_path / "ip-adapters" / "ip.safetensors", one, encoder=encoder)
    picture = studio.keep(colours_picture(1))
    [first] = drawn(studio, draft("one", **led_by(kind, picture)))
    loaded_kind, network = LEADING[kind]
    controls, adapters = studio.effects["controls"], studio.effects["picture_prompts"]
    assert isinstance(controls, ControlEffect)
    assert isinstance(adapters, IpAdapterEffect)
    in_memory = (*controls.loaded.values(), *adapters.loaded.values())
    [loaded] = [one for one in in_memory if isinstance(one, loaded_kind)]
    del in_memory
    [held] = [one for one in studio.memory.loaded() if one.kind == kind]
    assert held.size_bytes == loaded.size_bytes
    gone = weakref.ref(getattr(loaded, network))
    del loaded
    studio.memory.budget_bytes = size_of(studio, "one")
    drawn(studio, draft("two"), draft("three"))
    assert not controls.loaded
    assert not adapters.loaded
    assert not adapters.read
    assert_gone(gone)
    [again] = drawn(studio, draft("one", **led_by(kind, picture)))
    assert psnr(first.image, again.image) >= 60


def test_a_depth_model_counts_and_is_gone_when_it_left(studio: Studio, tmp_path: Path) -> None:
    write_dpt(tmp_path / "depth-models" / "near")
    write_folder(tmp_path / "controlnets" / "net", controlnet(load(studio.models.find("one").path)))
    picture = studio.keep(colours_picture(1))
    wish = ControlRequest(model="net", image=picture, preprocessor="depth")
    [first] = drawn(studio, draft("one", controls=(wish,)))
    [held] = [one for one in studio.memory.loaded() if one.kind == "depth"]
    [loaded] = studio.preprocessors.depths.values()
    assert (held.size_bytes, held.in_use) == (sum(p.nbytes for p in loaded.network.parameters()), False)
    gone = weakref.ref(loaded.network)
    del loaded
    studio.memory.budget_bytes = size_of(studio, "one")
    drawn(studio, draft("two"))
    assert not studio.preprocessors.depths
    assert_gone(gone)
    studio.hints.clear()
    [again] = drawn(studio, draft("one", controls=(wish,)))
    assert again.spec.controls[0].hint == first.spec.controls[0].hint


def test_a_depth_model_waits_for_room_and_one_that_is_damaged_holds_none(studio: Studio, tmp_path: Path) -> None:
    folder = write_dpt(tmp_path / "depth-models" / "near")

    async def work() -> None:
        lease = await studio.memory.acquire(
            [Allocation(key="busy", kind="model", name="busy", size_bytes=9, drop=lambda: None)]
        )
        studio.memory.budget_bytes = 10
        waiting = asyncio.create_task(studio.make_hint("depth", colours_picture(1)))
        await wait_in_loop_until(lambda: studio.memory.waiting)
        assert not waiting.done()
        lease.end()
        assert (await waiting).size == colours_picture(1).size

    run(work())
    studio.memory.drop_idle()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UnsupportedOption, match="is a bert"):
        run(studio.make_hint("depth", colours_picture(1)))
    assert studio.memory.loaded() == []


def test_a_model_starts_while_another_is_serving(studio: Studio) -> None:
    """Both fit: the second does not wait for the first's jobs to end."""

    async def work() -> None:
        long = asyncio.create_task(events_of(studio, draft("one", steps=1000)))
        await wait_in_loop_until(lambda: studio.backend.engine.live)
        short = await events_of(studio, draft("two"))
        assert any(isinstance(event, Stepped) for event in short)
        assert not long.done()
        long.cancel()
        await asyncio.wait([long])

    run(work())


def test_many_jobs_of_more_models_than_fit_all_end_well(studio: Studio) -> None:
    wishes = [draft(name, seed=seed) for seed in range(4) for name in NAMES]
    together = drawn(studio, *wishes)
    assert studio.memory.used_bytes <= studio.memory.budget_bytes
    assert not any(one.in_use for one in studio.memory.loaded())
    assert len(in_memory(studio)) == 2
    for wish, picture in list(zip(wishes, together, strict=True))[:3]:
        [alone] = drawn(studio, wish)
        assert psnr(alone.image, picture.image) >= 60  # the last bits change with the batch


def test_a_cancelled_job_lets_its_model_go(studio: Studio) -> None:
    studio.memory.budget_bytes = int(1.5 * size_of(studio, "one"))

    async def work() -> None:
        long = asyncio.create_task(events_of(studio, draft("one", steps=1000)))
        await wait_in_loop_until(lambda: studio.backend.engine.live)
        waiting = asyncio.create_task(events_of(studio, draft("two")))
        await wait_in_loop_until(lambda: studio.memory.waiting)
        assert not waiting.done()
        long.cancel()
        assert any(isinstance(event, Stepped) for event in await waiting)

    run(work())
    assert in_memory(studio) == {"two"}


def test_a_model_that_is_still_being_loaded_keeps_its_room_although_its_job_was_cancelled(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.memory.budget_bytes = int(1.5 * size_of(studio, "one"))
    loading, go_on, load_model = threading.Event(), threading.Event(), module.load_model

    def slowly(*given: Any, name: str, **more: Any) -> Model:
        if name == "one":
            loading.set()
            assert go_on.wait(PATIENCE_S)
        return load_model(*given, name=name, **more)

    monkeypatch.setattr(module, "load_model", slowly)

    async def work() -> None:
        left = asyncio.create_task(events_of(studio, draft("one")))
        await wait_in_loop_until(loading.is_set)
        left.cancel()
        await asyncio.wait([left])
        waiting = asyncio.create_task(events_of(studio, draft("two")))
        try:
            await wait_in_loop_until(lambda: studio.memory.waiting or waiting.done())
            assert not waiting.done(), "both would be in memory"
        finally:
            go_on.set()
        assert any(isinstance(event, Stepped) for event in await waiting)

    run(work())
    assert in_memory(studio) == {"two"}


def test_a_hint_that_is_still_being_made_keeps_its_network_although_nobody_waits(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dpt(tmp_path / "depth-models" / "near")
    making, go_on, make_hint = threading.Event(), threading.Event(), Preprocessors.make_hint

    def slowly(self: Preprocessors, *given: Any, **more: Any) -> Any:
        making.set()
        assert go_on.wait(PATIENCE_S)
        return make_hint(self, *given, **more)

    monkeypatch.setattr(Preprocessors, "make_hint", slowly)

    async def work() -> None:
        left = asyncio.create_task(studio.make_hint("depth", colours_picture(1)))
        await wait_in_loop_until(making.is_set)
        left.cancel()
        await asyncio.wait([left])
        try:
            assert [(one.kind, one.in_use) for one in studio.memory.loaded()] == [("depth", True)]
        finally:
            go_on.set()
        await wait_in_loop_until(lambda: not any(one.in_use for one in studio.memory.loaded()))

    run(work())


def test_a_model_larger_than_the_budget_is_drawn_with_all_the_same(studio: Studio) -> None:
    studio.memory.budget_bytes = 1000
    drawn(studio, draft("one"), draft("two"))
    assert len(in_memory(studio)) == 1


def test_a_model_larger_than_the_machine_is_refused(studio: Studio) -> None:
    studio.memory.max_bytes = 1000
    with pytest.raises(OutOfMemory, match=r"model one takes 0\.0 GiB"):
        drawn(studio, draft("one"))


def test_loras_count(studio: Studio, tmp_path: Path, model: Callable[[str], Model]) -> None:
    (tmp_path / "loras").mkdir()
    for seed in range(3):
        write_kohya(tmp_path / "loras" / f"style{seed}.safetensors", model("sd1"), seed=seed)
    drawn(studio, draft("one", loras=(LoraRequest(name="style0"),)))
    [lora] = [one for one in studio.memory.loaded() if one.kind == "lora"]
    loras = studio.effects["loras"]
    assert isinstance(loras, LoraEffect)
    real = next(iter(loras.loaded.values())).size_bytes
    # What is stacked for a call comes on top; the alphas of the file are in none of them.
    assert 2 * real <= lora.size_bytes < 2.1 * real
    studio.memory.budget_bytes = size_of(studio, "one") + int(1.5 * lora.size_bytes)
    for number in (1, 2):
        drawn(studio, draft("one", loras=(LoraRequest(name=f"style{number}"),)))
    assert [one.name for one in studio.memory.loaded() if one.kind == "lora"] == ["style2"]
    assert len(loras.loaded) == 1


def test_a_model_that_cannot_be_loaded_holds_no_room(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Model:
        raise CorruptModel("it is damaged")

    monkeypatch.setattr(module, "load_model", broken)
    with pytest.raises(CorruptModel, match="damaged"):
        drawn(studio, draft("one"))
    assert studio.memory.loaded() == []


async def events_of(studio: Studio, wish: Draft) -> list[Event]:
    async with asyncio.timeout(PATIENCE_S), aclosing(generate(await resolve(wish, studio), studio)) as events:
        return [event async for event in events if isinstance(event, Started | Stepped)]


def test_the_budget_is_a_setting() -> None:
    with open_studio(Settings(device="cpu", model_memory_gb=1.5)) as studio:
        assert studio.memory.budget_bytes == 1.5e9
    with open_studio(Settings(device="cpu")) as studio:
        usual, most = studio.memory.budget_bytes, studio.memory.max_bytes
        assert isinstance(studio.memory, Memory)
        assert most is not None
        assert usual == int(0.6 * most)
