import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.errors import InvalidRequest
from safelight.prompts.lora_tags import extract_loras, with_tags, write_tag
from safelight.spec import LoraRequest
from safelight.spec.effects import BLOCKS


@pytest.mark.parametrize(
    ("tag", "weight", "text_weight"),
    [
        ("<lora:ink>", 1.0, None),
        ("<lora:ink:0.8>", 0.8, None),
        ("<lora:ink:-1>", -1.0, None),
        # extra_networks_lora.py there: first the text encoder's, then the UNet's.
        ("<lora:ink:0.8:0.6>", 0.6, 0.8),
        ("<lora:ink:te=0.8:unet=0.6>", 0.6, 0.8),
        ("<lora:ink:unet=0.6>", 0.6, 1.0),
        ("<lora:ink:te=0.5>", 0.5, None),
        ("<lora:ink:0.8:unet=0.6>", 0.6, 0.8),
        ("<LORA:ink:0.8>", 0.8, None),
        ("<lyco:ink:0.8>", 0.8, None),
    ],
)
def test_weights_are_read_in_their_order(tag: str, weight: float, text_weight: float | None) -> None:
    assert extract_loras(f"a cat {tag}") == (
        "a cat",
        (LoraRequest(name="ink", weight=weight, text_weight=text_weight),),
    )


@pytest.mark.parametrize(
    ("prompt", "left"),
    [
        ("<lora:a:1>a cat", "a cat"),
        ("a <lora:a:1> cat <lora:b:1>", "a cat"),
        ("a cat, <lora:a:1>", "a cat,"),
        ("a cat <hypernet:x:1> <lora:a>", "a cat <hypernet:x:1>"),
    ],
)
def test_tags_are_taken_out_of_the_prompt(prompt: str, left: str) -> None:
    assert extract_loras(prompt)[0] == left


@given(st.text().filter(lambda text: "lora:" not in text.casefold() and "lyco:" not in text.casefold()))
def test_a_prompt_without_tags_stays_as_it_is(prompt: str) -> None:
    assert extract_loras(prompt) == (prompt, ())


def test_blocks_and_steps_are_read() -> None:
    _, (wish,) = extract_loras("<lora:ink:1:lbw=1,0.5,0:start=0.2:end=0.8>")
    assert wish.blocks == {"down": 1, "mid": 0.5, "up": 0}
    assert (wish.start, wish.end) == (0.2, 0.8)


@pytest.mark.parametrize(
    ("tag", "says"),
    [
        ("<lora:ink:much>", "weight"),
        ("<lora:ink:1:2:3>", "at most two weights"),
        ("<lora::1>", "name"),
        ("<lora:ink:unett=1>", "did you mean 'unet'"),
        ("<lora:ink:1:lbw=1,2>", "3, 12, 17, 20, 26 numbers, not 2"),
        ("<lora:ink:1:start=0.9:end=0.1>", "must be below"),
        ("<lora:ink:nan>", "weight"),
    ],
)
def test_an_invalid_tag_is_refused(tag: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        extract_loras(tag)


weights = st.floats(-100, 100).map(lambda value: round(value, 6))
blocks = st.sampled_from(list(BLOCKS.values())).flatmap(
    lambda names: st.fixed_dictionaries(dict.fromkeys(names.split(), weights))
)
wishes = st.builds(
    LoraRequest,
    name=st.from_regex(r"\A[\w][\w .\-]{0,20}[\w]\Z"),
    weight=weights,
    text_weight=st.none() | weights,
    blocks=st.none() | blocks,
    start=st.sampled_from([0.0, 0.25]),
    end=st.sampled_from([0.5, 1.0]),
)


@given(st.lists(wishes, max_size=3))
def test_a_written_tag_is_parsed_back(loras: list[LoraRequest]) -> None:
    prompt, read = extract_loras(with_tags("a cat", loras))
    assert prompt == "a cat"
    plain = [
        wish.model_copy(update={"text_weight": None}) if wish.text_weight == wish.weight else wish for wish in loras
    ]
    assert list(read) == plain


def test_the_usual_tag_is_written_in_its_short_form() -> None:
    assert write_tag(LoraRequest(name="ink", weight=0.8)) == "<lora:ink:0.8>"
