"""Every part opened from settings, and the path through them: draft, spec, job, picture, asset."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import aclosing
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image
from tests.fakes import psnr
from tests.models.embeddings import write_a1111
from tests.tiny_models import SIDE, VAE, box_mask, checkpoint, one_thread, seeded, start_picture

import safelight
from safelight.api import Drawn, draw_all, run
from safelight.api import generate as generate_pictures
from safelight.errors import (
    InvalidImage,
    InvalidRequest,
    JobCancelled,
    SafelightError,
    UnknownModel,
    UnknownSampler,
    UnsupportedOption,
)
from safelight.events import Cancelled, Decoded, Event, Failed, Queued, Started, Stepped, Stored
from safelight.models.checkpoints.digest import file_sum
from safelight.models.checkpoints.sizes import rounded, same_area
from safelight.pipeline import generate
from safelight.prompts.expand import with_consecutive_seeds
from safelight.resolve.resolve import resolve
from safelight.settings import Settings
from safelight.spec import Draft, ImageToImage, Inpaint, Sides, TextToImage, Upscale, parse_spec
from safelight.spec.parts import PinnedEmbedding
from safelight.studio import Studio, open_studio

__all__ = ["checkpoint", "one_thread"]


@pytest.fixture(scope="module")
def studio(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    home = tmp_path_factory.mktemp("studio")
    for kind in ("sd1", "sdxl"):
        shutil.copytree(checkpoint(kind), home / "models" / kind)
    with open_studio(Settings(home=home, device="cpu")) as studio:
        yield studio


def draft(**wishes: Any) -> Draft:
    return Draft(**{"prompt": "the red apple", "model": "sd1", "steps": 3, "seed": 1} | wishes)


def events_of(wish: Any, studio: Studio) -> list[Event]:
    async def gather() -> list[Event]:
        async with aclosing(
            generate(await resolve(wish, studio) if isinstance(wish, Draft) else wish, studio)
        ) as events:
            return [event async for event in events]

    return asyncio.run(gather())


def completed(studio: Studio, wish: Draft) -> Any:
    return asyncio.run(resolve(wish, studio))


# Completing a draft


def test_a_draft_is_pinned_to_its_model_and_the_samplers_proper_name(studio: Studio) -> None:
    spec = completed(studio, draft(sampler="k_dpmpp_2m_ka"))
    assert isinstance(spec, TextToImage)
    assert spec.sampler == "DPM++ 2M Karras"
    assert spec.model_digest == studio.models.find("sd1").digest
    assert (spec.width, spec.height) == (SIDE, SIDE)


@pytest.mark.parametrize(
    ("wishes", "error", "said"),
    [
        ({"model": "sd11"}, UnknownModel, "did you mean 'sd1'"),
        ({"sampler": "Euller"}, UnknownSampler, "did you mean 'Euler'"),
        ({"init": "c" * 64}, SafelightError, "c" * 10),
    ],
)
def test_what_is_not_there_is_said_before_anything_runs(studio: Studio, wishes: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        events_of(draft(**wishes), studio)


@pytest.mark.parametrize(
    ("size", "wishes", "expected"),
    [
        ((300, 300), {}, (64, 64)),
        ((400, 200), {}, (88, 64)),  # the model's own area in the picture's proportions, and never below 64
        ((200, 400), {"width": 128}, (128, 256)),
        ((200, 400), {"height": 128}, (64, 128)),
        ((200, 400), {"width": 96, "height": 72}, (96, 72)),
    ],
)
def test_a_start_picture_keeps_its_proportions(studio: Studio, size: Any, wishes: Any, expected: Any) -> None:
    init = studio.keep(start_picture(*size))
    spec = completed(studio, draft(init=init, **wishes))
    assert isinstance(spec, ImageToImage)
    assert (spec.width, spec.height) == expected


def cut_out(width: int = 90, height: int = 70) -> Image.Image:
    """A picture whose left half is transparent, with a column of mixed pixels between."""
    image = start_picture(width, height).convert("RGBA")
    alpha = box_mask((width // 2, 0, width, height), width, height)
    alpha.paste(100, (width // 2 - 1, 0, width // 2, height))
    image.putalpha(alpha)
    return image


def test_a_background_is_replaced_and_the_subject_kept_to_the_pixel(studio: Studio) -> None:
    """At the picture's own size, though the model draws another."""
    image = cut_out()
    spec = completed(studio, draft(init=studio.keep(image), replace_background=True))
    assert isinstance(spec, Inpaint)
    assert (spec.strength, spec.soft_mask, spec.only_masked) == (1.0, True, True)
    drawn = next(event.image for event in events_of(spec, studio) if isinstance(event, Decoded))
    assert drawn.size == image.size
    subject, mixed, ground = (45, 0, 90, 70), (44, 0, 45, 70), (0, 0, 44, 70)
    old = image.convert("RGB")
    assert drawn.crop(subject).tobytes() == old.crop(subject).tobytes()
    assert psnr(drawn.crop(ground), old.crop(ground)) < 20
    assert drawn.crop(mixed).tobytes() != old.crop(mixed).tobytes()


def test_a_mask_may_say_what_the_background_is(studio: Studio) -> None:
    image = start_picture(64, 64)
    mask = studio.keep(box_mask((0, 0, 64, 20)), mode="L")
    spec = completed(studio, draft(init=studio.keep(image), mask=mask, replace_background=True))
    drawn = next(event.image for event in events_of(spec, studio) if isinstance(event, Decoded))
    assert drawn.crop((0, 20, 64, 64)).tobytes() == image.crop((0, 20, 64, 64)).tobytes()


def test_transparency_is_kept_with_a_picture_and_seen_as_white(studio: Studio, tmp_path: Path) -> None:
    cut_out().save(tmp_path / "cut.png")
    digests = {studio.keep(tmp_path / "cut.png"), studio.keep((tmp_path / "cut.png").read_bytes())}
    assert digests == {studio.keep(cut_out())}
    seen = studio.picture(digests.pop())
    assert seen.mode == "RGB"
    assert seen.getpixel((0, 0)) == (255, 255, 255)


def test_a_png_is_kept_as_it_came_and_what_is_turned_is_made_upright(studio: Studio) -> None:
    file = BytesIO()
    cut_out().convert("P").save(file, "PNG", compress_level=1)
    assert studio.assets.read(studio.keep(file.getvalue())) == file.getvalue()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for kind in ("PNG", "JPEG"):
        turned = BytesIO()
        start_picture(64, 32).save(turned, kind, exif=exif)
        digest = studio.keep(turned.getvalue())
        assert studio.size_of(digest) == studio.picture(digest).size == (32, 64)
        assert not Image.open(BytesIO(studio.assets.read(digest))).getexif()


def test_outpainting_grows_the_canvas_and_keeps_the_picture(studio: Studio) -> None:
    init = start_picture(64, 64)
    spec = completed(studio, draft(init=studio.keep(init), extend=Sides(right=32), mask_blur=0))
    assert isinstance(spec, Inpaint)
    assert (spec.width, spec.height, spec.strength) == (96, 64, 1.0)
    image = next(event.image for event in events_of(spec, studio) if isinstance(event, Decoded))
    assert image.size == (96, 64)
    assert image.crop((0, 0, 56, 64)).tobytes() == init.crop((0, 0, 56, 64)).tobytes(), (
        "all but the overlap at the seam"
    )


@pytest.mark.parametrize(
    ("proportion", "area"), [(1.0, 512 * 512), (2.0, 512 * 512), (0.3, 1024 * 1024), (1000.0, 1e6)]
)
def test_sides_are_those_a_spec_may_have(proportion: float, area: float) -> None:
    for side in same_area(proportion, area, 8):
        assert 64 <= side <= 4096
        assert side % 8 == 0
    assert rounded(3.0, 8) == 64


def test_pictures_from_strangers_are_measured_first(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("no picture")
    for source in (b"no picture", tmp_path / "words.png", str(tmp_path / "nothing.png")):
        with pytest.raises(InvalidImage):
            studio.keep(source)
    large = BytesIO()
    Image.new("1", (9000, 9000)).save(large, "PNG")
    with pytest.raises(InvalidImage, match="at most"):
        studio.keep(large.getvalue())


# The path


def test_the_path_ends_in_a_stored_file_that_carries_its_spec(studio: Studio) -> None:
    events = events_of(draft(), studio)
    kinds = [type(event) for event in events]
    assert kinds == [Queued, Started, Stepped, Stepped, Stepped, Decoded, Stored]
    stored, decoded = events[-1], events[-2]
    assert isinstance(stored, Stored)
    assert isinstance(decoded, Decoded)
    with Image.open(stored.path) as file:
        assert file.tobytes() == decoded.image.tobytes()
        assert file.info
    assert stored.seconds >= decoded.compute_s > 0
    assert stored.asset_id in stored.path


def test_a_spec_can_be_drawn_again(studio: Studio) -> None:
    spec = completed(studio, draft())
    first, again = (next(e.image for e in events_of(spec, studio) if isinstance(e, Decoded)) for _ in range(2))
    assert first.tobytes() == again.tobytes()


def test_upscaling_needs_no_network(studio: Studio) -> None:
    init = studio.keep(start_picture(50, 30))
    [decoded, stored] = events_of(Upscale(init=init, scale=2.0), studio)
    assert isinstance(decoded, Decoded)
    assert isinstance(stored, Stored)
    assert decoded.image.size == (100, 60)


def test_what_fails_in_the_engine_is_the_last_event(studio: Studio) -> None:
    spec = completed(studio, draft()).model_copy(update={"sampler": "Flow Euler"})
    last = events_of(spec, studio)[-1]
    assert isinstance(last, Failed)
    assert "flow" in str(last.error)


def test_a_picture_that_cannot_be_stored_has_failed(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    from safelight.assets.store import AssetStore
    from safelight.errors import StorageFailed

    def full(*_: Any, **__: Any) -> Any:
        raise StorageFailed("disk full")

    monkeypatch.setattr(AssetStore, "put", full)
    events = events_of(draft().model_copy(update={"seed": 246}), studio)  # one that was not signed before
    assert [type(event) for event in events[-2:]] == [Decoded, Failed]


def test_an_unlike_model_in_the_spec_is_refused(studio: Studio) -> None:
    spec = completed(studio, draft()).model_copy(update={"model_digest": "0" * 64})
    with pytest.raises(InvalidRequest, match="the picture would differ"):
        events_of(spec, studio)


# Many at once, and from plain Python


def test_n_pictures_have_consecutive_seeds_and_are_drawn_together(studio: Studio) -> None:
    rows: list[int] = []

    def on_event(_number: int, event: Event) -> None:
        if isinstance(event, Stepped):
            rows.append(event.batch_rows)

    drawn = asyncio.run(
        draw_all(with_consecutive_seeds(draft(seed=5, guidance=1.0, steps=12), 4), studio, on_event=on_event)
    )
    assert [picture.seed for picture in drawn] == [5, 6, 7, 8]
    assert max(rows) == 4
    assert len({picture.asset_id for picture in drawn}) == 4


@pytest.mark.parametrize("n", [0, -1, 1001])
def test_an_impossible_number_of_pictures_is_refused(n: int) -> None:
    with pytest.raises(InvalidRequest, match=f"n must be 1 to 1000, not {n}"):
        with_consecutive_seeds(draft(), n)


def test_after_the_largest_seed_comes_0() -> None:
    assert [one.seed for one in with_consecutive_seeds(draft(seed=2**32 - 2), 4)] == [2**32 - 2, 2**32 - 1, 0, 1]


def test_a_spec_of_before_with_a_larger_seed_is_drawn_as_it_was(studio: Studio) -> None:
    """By the lower 32 bits, which is why no new one is taken."""
    spec = completed(studio, draft(seed=5))
    before = parse_spec(spec.model_dump(mode="json") | {"seed": 2**63 + 5})
    assert before.digest() == spec.model_copy(update={"seed": 2**63 + 5}).digest() != spec.digest()
    old, new = (decoded(events_of(one, studio)) for one in (before, spec))
    assert old.tobytes() == new.tobytes()


def decoded(events: list[Event]) -> Image.Image:
    return next(event.image for event in events if isinstance(event, Decoded))


@pytest.mark.parametrize("seed", [2**32, 2**64, 2**64 + 7])
def test_plain_python_is_told_why_a_seed_is_refused(seed: int, studio: Studio) -> None:
    with pytest.raises(InvalidRequest, match=f"the same picture as {seed % 2**32} "):
        generate_pictures("the cat", model="sd1", seed=seed, studio=studio)


def test_plain_python_gets_pictures(studio: Studio) -> None:
    [drawn] = generate_pictures("the cat", model="sd1", steps=2, seed=3, studio=studio)
    assert isinstance(drawn, Drawn)
    assert drawn.path.is_file()
    assert drawn._repr_png_().startswith(b"\x89PNG")
    assert (drawn.spec.prompt, drawn.seed, drawn.image.size) == ("the cat", 3, (SIDE, SIDE))


def test_the_package_itself_can_be_called(studio: Studio) -> None:
    [drawn] = safelight.generate("the cat", model="sd1", steps=2, seed=3, studio=studio)
    assert drawn.seed == 3
    assert safelight.open_studio is open_studio


def test_start_pictures_and_masks_come_in_any_form(studio: Studio, tmp_path: Path) -> None:
    path = tmp_path / "start.png"
    start_picture().save(path)
    wishes: dict[str, Any] = {
        "model": "sd1",
        "steps": 3,
        "seed": 1,
        "strength": 0.7,
        "studio": studio,
        "mask_blur": 0.0,
    }
    mask = box_mask((16, 8, 48, 40))
    forms = [start_picture(), path, str(path), path.read_bytes()]
    drawn = [generate_pictures("the cat", init=form, mask=mask, **wishes)[0] for form in forms]
    assert len({picture.spec.digest() for picture in drawn}) == 1
    assert isinstance(drawn[0].spec, Inpaint)
    assert psnr(drawn[0].image, start_picture()) < 40


def test_a_misspelt_wish_is_an_error(studio: Studio) -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'steps'"):
        generate_pictures("the cat", studio=studio, stepz=3)


def test_the_first_failure_is_raised_as_itself(studio: Studio) -> None:
    with pytest.raises(SafelightError, match="flow"):
        generate_pictures("the cat", n=3, model="sd1", sampler="Flow Euler", studio=studio)


def test_it_works_where_a_loop_is_running_already() -> None:
    """As in a notebook."""

    async def inner() -> int:
        return 7

    async def notebook() -> int:
        return run(inner())

    assert asyncio.run(notebook()) == 7


def test_cancelling_a_job_of_plain_python_is_an_error_of_its_own(studio: Studio) -> None:
    async def cancel_midway() -> None:
        def on_event(_number: int, event: Event) -> None:
            if isinstance(event, Started):
                tasks.append(asyncio.ensure_future(studio.backend.cancel(event.job_id)))

        tasks: list[Any] = []
        await draw_all([draft(steps=500)], studio, on_event=on_event)

    with pytest.raises(JobCancelled, match="cancelled after"):
        run(cancel_midway())


def test_leaving_early_cancels_the_job(studio: Studio) -> None:
    async def leave() -> None:
        async with aclosing(generate(await resolve(draft(steps=500), studio), studio)) as events:
            async for event in events:
                if isinstance(event, Stepped):
                    return

    asyncio.run(leave())
    backend: Any = studio.backend
    [after] = generate_pictures("the cat", model="sd1", steps=2, studio=studio)
    assert after.image.size == (SIDE, SIDE)
    assert not backend.listeners


def test_closing_a_studio_ends_what_is_under_way(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(checkpoint("sd1"), tmp_path / "models" / "sd1")
    studio = open_studio(Settings(home=tmp_path, device="cpu"))

    async def close_midway() -> Event:
        last: Event | None = None
        async with aclosing(generate(await resolve(draft(steps=500), studio), studio)) as events:
            async for event in events:
                if isinstance(event, Started):
                    await asyncio.to_thread(studio.close)
                last = event
        assert last is not None
        return last

    assert isinstance(asyncio.run(close_midway()), Cancelled)


# Embeddings


def test_an_embedding_is_pinned_drawn_with_and_missed(studio: Studio) -> None:
    folder = studio.settings.embeddings
    wish = draft(prompt="a my-cat", guidance=8.0)
    as_words = completed(studio, wish)
    assert as_words.embeddings == ()
    file = write_a1111(folder / "my-cat.safetensors")
    try:
        spec = completed(studio, wish)
        assert [(pinned.name, pinned.digest) for pinned in spec.embeddings] == [("my-cat", file_sum(file))]
        assert completed(studio, draft(prompt="a cat")).embeddings == ()
        with_it, without = (run(draw_spec(one, studio)) for one in (spec, as_words))
        assert psnr(with_it, without) < 50
        with pytest.raises(UnsupportedOption, match=r"'my-cat' is for another model .* needs 32 and 24"):
            completed(studio, draft(prompt="a my-cat", model="sdxl"))
        file.unlink()
        with pytest.raises(InvalidRequest, match="no embedding named 'my-cat'"):
            run(draw_spec(spec, studio))
    finally:
        shutil.rmtree(folder)


def test_a_spec_with_an_embedding_of_another_width_is_refused_by_the_engine(studio: Studio) -> None:
    folder = studio.settings.embeddings
    file = write_a1111(folder / "wide.safetensors", width=40)
    try:
        pinned = PinnedEmbedding(name="wide", digest=file_sum(file))
        spec = completed(studio, draft()).model_copy(update={"embeddings": (pinned,)})
        with pytest.raises(UnsupportedOption, match="'wide' is for another model"):
            run(draw_spec(spec, studio))
    finally:
        shutil.rmtree(folder)


def test_a_spec_without_embeddings_has_the_digest_it_always_had(studio: Studio) -> None:
    spec = completed(studio, draft())
    assert "embeddings" not in spec.model_dump(exclude_defaults=True)
    pinned = (PinnedEmbedding(name="x", digest="a" * 64),)
    assert spec.model_copy(update={"embeddings": pinned}).digest() != spec.digest()


async def draw_spec(spec: Any, studio: Studio) -> Image.Image:
    async with aclosing(generate(spec, studio)) as events:
        async for event in events:
            if isinstance(event, Decoded):
                return event.image
    raise AssertionError("nothing was decoded")


def test_choices_in_a_prompt_are_made_from_python(studio: Studio) -> None:
    wishes = {"model": "sd1", "steps": 2, "seed": 3, "studio": studio}
    drawn = generate_pictures("a {cat|dog}", expand="combinatorial", n=2, **wishes)
    assert [(one.spec.prompt, one.seed) for one in drawn] == [("a cat", 3), ("a cat", 4), ("a dog", 3), ("a dog", 4)]
    [one] = generate_pictures("a {cat|dog}", **wishes)
    assert one.spec.prompt == "a {cat|dog}"


def test_a_part_that_stands_in_is_pinned_and_draws_another_picture(studio: Studio) -> None:
    """Drawn again from its spec, it is the same picture; without the part, the spec is what it was."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    seeded(77, lambda: AutoencoderKL(**VAE)).save_pretrained(studio.settings.home / "vaes" / "other")
    plain, spec = completed(studio, draft()), completed(studio, draft(vae="other"))
    assert (spec.vae.name, plain.vae) == ("other", None)
    assert spec.model_copy(update={"vae": None}).digest() == plain.digest() != spec.digest()
    first, again, without = (
        next(event.image for event in events_of(one, studio) if isinstance(event, Decoded))
        for one in (spec, spec, plain)
    )
    assert first.tobytes() == again.tobytes()
    assert psnr(first, without) < 30
