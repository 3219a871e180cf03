"""A spec is complete, frozen, and named by its digest; a draft says what is wrong with it, all at once."""

import json
import math
import secrets
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from safelight.errors import InvalidRequest
from safelight.spec import (
    Denoised,
    Draft,
    GuidanceInterval,
    HighresFix,
    ImageToImage,
    Inpaint,
    TextToImage,
    Upscale,
    parse_draft,
    parse_spec,
)
from safelight.spec.complete import Defaults, choose_seed, complete, seeds_from
from safelight.spec.effects import PinnedPicturePrompt

MODEL = "0" * 64
INIT, MASK = "a" * 64, "b" * 64
DEFAULTS = Defaults(width=512, height=512)

digests = st.text("0123456789abcdef", min_size=64, max_size=64)
words = st.text(max_size=200)
sides = st.integers(8, 512).map(lambda eighth: eighth * 8)
fractions = st.floats(0, 1)
strengths = st.floats(0, 1, exclude_min=True)
intervals = (
    st.tuples(fractions, fractions)
    .filter(lambda pair: pair[0] < pair[1])
    .map(lambda pair: GuidanceInterval(start=pair[0], end=pair[1]))
)
common: dict[str, Any] = {
    "model": words,
    "model_digest": digests,
    "prompt": words,
    "negative_prompt": words,
    "seed": st.integers(0, 2**64 - 1),
    "width": sides,
    "height": sides,
    "sampler": words,
    "steps": st.integers(1, 1000),
    "guidance": st.floats(0, 100),
    "guidance_rescale": fractions,
    "guidance_interval": intervals,
    "clip_skip": st.integers(1, 12),
    "determinism": st.sampled_from(["fast", "strict"]),
}
highres = st.builds(
    HighresFix,
    scale=st.floats(1, 8, exclude_min=True),
    strength=strengths,
    steps=st.none() | st.integers(1, 1000),
    upscaler=st.sampled_from(["latent", "latent-nearest", "lanczos", "realesrgan-x4plus"]),
)
start: dict[str, Any] = {"init": digests, "strength": strengths, "fit": st.sampled_from(["crop", "stretch", "pad"])}
specs = st.one_of(
    st.builds(TextToImage, **common, highres=st.none() | highres),
    st.builds(ImageToImage, **common, **start),
    st.builds(
        Inpaint,
        **common,
        **start,
        mask=digests,
        mask_blur=st.floats(0, 256),
        mask_invert=st.booleans(),
        only_masked=st.booleans(),
        padding=st.integers(0, 1024),
    ),
    st.builds(Upscale, init=digests, scale=st.floats(1, 8, exclude_min=True)),
)


def spec(**wishes: Any) -> Denoised:
    return complete(Draft(**{"prompt": "a red apple", "seed": 7} | wishes), DEFAULTS, model_digest=MODEL)


@given(specs)
def test_a_spec_survives_json_and_keeps_its_digest(value: Any) -> None:
    again = parse_spec(json.loads(value.model_dump_json()))
    assert again == value
    assert type(again) is type(value)
    assert again.digest() == value.digest()


@given(specs, specs)
def test_unlike_specs_have_unlike_digests(one: Any, other: Any) -> None:
    assert (one.digest() == other.digest()) == (one == other)


def test_the_digest_of_a_spec_never_changes() -> None:
    """Golden: files carry these numbers. If one changes, old pictures lose their name; make it a new field instead."""
    assert spec().digest() == "b8d51e728b725d0247439869c09c9df91ef7de4528dd6b5338e00a74e51a57bb"
    assert (
        spec(init=INIT, mask=MASK, strength=0.5, mask_blur=2).digest()
        == "c6879f792f9278dd438fdfb8e2690fdbbc3b17346e64f885e05ce8801462f1c1"
    )
    assert Upscale(init=INIT, scale=2).digest() == "481309389d7f53856e1a2de544ef9fc31563a050cd8d570a18f8a162d618a5af"
    look = PinnedPicturePrompt(
        model="ip", digest="1" * 64, image="2" * 64, encoder="image_encoder", encoder_digest="3" * 64, weight=0.5
    )
    led = spec().model_copy(update={"picture_prompts": (look,)})
    assert led.digest() == "d762d9f635d743863335d50d999867e20f1022674232d02a226e0b3faa5a97d8"


def test_a_field_at_its_default_leaves_the_digest_alone() -> None:
    """So that a field added later, with what was done before as its default, leaves old digests valid."""
    assert spec(highres=None).digest() == spec().digest()
    assert spec(guidance_interval=GuidanceInterval(start=0, end=1)).digest() == spec().digest()


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec().seed = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("wishes", "kind"),
    [({}, TextToImage), ({"init": INIT}, ImageToImage), ({"init": INIT, "mask": MASK}, Inpaint)],
)
def test_what_a_draft_starts_from_decides_the_task(wishes: dict[str, str], kind: type) -> None:
    assert type(spec(**wishes)) is kind


def test_what_the_caller_leaves_open_the_model_decides() -> None:
    special = Defaults(width=256, height=320, sampler="LCM", steps=4, guidance=1.5, clip_skip=2, guidance_rescale=0.3)
    made = complete(Draft(prompt="x", steps=9), special, model_digest=MODEL, random_seed=5)
    assert made.model_dump(include={"width", "height", "sampler", "steps", "guidance", "clip_skip", "seed"}) == {
        "width": 256,
        "height": 320,
        "sampler": "LCM",
        "steps": 9,
        "guidance": 1.5,
        "clip_skip": 2,
        "seed": 5,
    }


def test_a_seed_of_before_is_read_from_a_spec_and_not_from_a_draft() -> None:
    spec = complete(Draft(prompt="x", seed=2**32 - 1), DEFAULTS, model_digest=MODEL)
    assert parse_spec(spec.model_dump(mode="json") | {"seed": 2**64 - 1}).seed == 2**64 - 1
    with pytest.raises(InvalidRequest, match="seed"):
        parse_spec(spec.model_dump(mode="json") | {"seed": 2**64})
    assert '"maximum": 4294967295' in json.dumps(Draft.model_json_schema()["properties"]["seed"])


def test_a_chosen_seed_has_32_bits_and_so_have_those_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "randbelow", lambda below: below - 1)
    assert seeds_from(choose_seed(), 3) == [2**32 - 1, 0, 1]


def test_a_seed_is_chosen_where_none_is_given_and_every_format_can_carry_it() -> None:
    seeds = {complete(Draft(prompt="x"), DEFAULTS, model_digest=MODEL).seed for _ in range(20)}
    assert len(seeds) > 15
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"width": 100}, r"width: .*multiple of 8 \(got 100\)"),
        ({"width": 0}, r"width: .*greater than or equal to 64 \(got 0\)"),
        ({"height": 1_000_000}, r"height: .*4096"),
        ({"guidance": math.nan}, r"guidance: .*finite number \(got nan\)"),
        ({"guidance": math.inf}, r"guidance"),
        ({"guidance": -1}, r"guidance: .*\(got -1\)"),
        ({"strength": math.nan, "init": INIT}, r"strength: .*finite"),
        ({"strength": 0, "init": INIT}, r"strength: .*greater than 0"),
        ({"strength": 1.01, "init": INIT}, r"strength: .*less than or equal to 1"),
        ({"steps": 0}, r"steps: .*\(got 0\)"),
        ({"steps": 2.5}, r"steps: .*integer"),
        ({"seed": -1}, r"seed: .*\(got -1\)"),
        (
            {"seed": 2**32},
            r"seed: at most 4294967295: only 32 bits of a seed are used, .* picture as 0 \(got 42",
        ),
        ({"seed": 2**64}, r"seed: at most 4294967295"),
        ({"prompt": "x" * 100_000}, r"prompt: .*at most 20000 characters \(got 'x+\.\.\.\)"),
        ({"stepz": 3}, r"stepz: no such field; did you mean 'steps'"),
        ({"clip_skip": 0}, r"clip_skip"),
        ({"init": "../etc/passwd"}, r"init: .*pattern"),
        ({"mask": MASK}, r"mask: needs an init picture"),
        ({"strength": 0.5}, r"strength: needs an init picture"),
        ({"extend": {"left": 64}}, r"extend: needs an init picture"),
        ({"extend": {"left": 3}, "init": INIT}, r"extend.left: .*multiple of 8"),
        ({"extend": {"left": 8}, "init": INIT, "mask": MASK}, r"extend: makes its own mask"),
        ({"highres": {}, "init": INIT}, r"highres: works only without an init picture"),
        ({"highres": {"scale": 1}}, r"highres.scale: .*greater than 1"),
        ({"guidance_interval": {"start": 0.7, "end": 0.3}}, r"guidance_interval.start: 0.7 must be below end 0.3"),
        ({"fit": "squeeze", "init": INIT}, r"fit: .*'crop', 'stretch' or 'pad'"),
        ({"determinism": "very"}, r"determinism"),
    ],
)
def test_a_wrong_wish_is_named_with_what_would_be_right(wishes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        parse_draft({"prompt": "x"} | wishes)


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_draft({"width": 7, "stepz": 1})
    message = str(caught.value)
    assert all(word in message for word in ("prompt", "width", "stepz"))
    assert len(message) < 1000


@pytest.mark.parametrize(
    "values", [{}, {"task": "dance"}, {"task": "upscale"}, {"task": "text-to-image", "prompt": "x"}]
)
def test_half_a_spec_is_none(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        parse_spec(values)


def test_a_spec_of_a_later_version_is_refused_rather_than_misread() -> None:
    with pytest.raises(InvalidRequest, match="aura: no such field"):
        parse_spec(spec().model_dump() | {"aura": 3})
