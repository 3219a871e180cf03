import json
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.vocabulary import BEGIN, END, LAYOUTS, sd1, sd2

from safelight.errors import CorruptModel, InvalidRequest
from safelight.models.networks.tokenize import MAX_CHUNKS, Chunk, Tokenizer, chunk

TEXTS = [
    "",
    " ",
    "a photo of the red apple",
    "A PHOTO of The Red  Apple",
    "an astronaut riding a horse, masterpiece, best quality",
    "don't, we'll, the cat's, I'VE, it's'",
    "line one\nline two\ttab\r\nend",
    "1234567890 3.14 1,000 x2",
    "café cafe\u0301 Café",
    "ÀÉÎõü ß ﬁ Ⅷ ½ ²",
    "猫 ねこ 고양이 кошка القط",
    "🐱👩‍🚀🇩🇪 👍🏽",
    "hello!! what?! ... --- ___ @#$%^&*()[]{}<>/\\|~`",
    "non\u00a0breaking\u2003em\u200bzero\ufeffbom\u3000wide",
    f"{END} in the {BEGIN} middle {END}!",
    "<|ENDOFTEXT|> <|endoftext",
    "<my-cat> and a<my-cat>b <MY-CAT>",
    "\x00\x01\x7f control",
    "İstanbul ẞ ǅ ΑΣ",
    "'s't're",
    "a" * 300,
    "\u0301" * 50,
]


@cache
def pair(layout: str):
    """Our tokenizer and transformers', from the same folder."""
    from transformers import CLIPTokenizer

    folder = LAYOUTS[layout](Path(mkdtemp()) / layout)
    return Tokenizer.load(folder), CLIPTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_ids_are_those_of_transformers(layout: str) -> None:
    ours, theirs = pair(layout)
    for text in TEXTS:
        assert ours.ids(text) == theirs(text, add_special_tokens=False).input_ids, text


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=100, deadline=None)
@given(text=st.text() | st.text(alphabet="aAcCtTsS'! ,.\n12é🐱<|>") | st.lists(st.sampled_from(TEXTS)).map(" ".join))
def test_the_ids_are_those_of_transformers_for_any_text(layout: str, text: str) -> None:
    ours, theirs = pair(layout)
    assert ours.ids(text) == theirs(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_frame_is_that_of_transformers(layout: str) -> None:
    ours, theirs = pair(layout)
    assert (ours.bos, ours.eos, ours.pad) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert ours.vocabulary_size == len(theirs)
    assert ours.max_length == (theirs.model_max_length if layout != "bare" else 77)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prompt_of_one_chunk_has_the_ids_diffusers_would_use(layout: str) -> None:
    ours, theirs = pair(layout)
    for text in ("", "a photo of the red apple, the cat's dog!", "猫 " * 20, "a " * 75):
        expected = theirs(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert chunk(text, ours) == [Chunk(tuple(expected), (1.0,) * 77)], text


@pytest.fixture
def small(tmp_path: Path) -> Tokenizer:
    """Room for 6 tokens a chunk, and padding that shows."""
    sd2(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 8}))
    return Tokenizer.load(tmp_path)


def read(chunks: list[Chunk], tokenizer: Tokenizer) -> list[str]:
    """Contents without the frame, one letter a token."""
    name = tokenizer.backend.id_to_token
    return ["".join(name(i).removesuffix("</w>") for i in c.ids[1 : c.ids.index(tokenizer.eos)]) for c in chunks]


# Room for 6 tokens; letters are one token each.
CUTS = {
    "": [""],
    "x y z": ["xyz"],
    "u v w x y z": ["uvwxyz"],
    "u v w x y z u": ["uvwxyz", "u"],
    "u v , x y z u": ["uv,", "xyzu"],  # what follows the comma moves along
    ", u v w x y z": [",", "uvwxyz"],
    "u v w x y , z": ["uvwxy,", "z"],
    "u v w x y z ,": ["uvwxyz", ","],
    "u , v , x y z": ["u,v,", "xyz"],
    "x BREAK y": ["x", "y"],
    "x BREAK BREAK y": ["x", "", "y"],
    "BREAK x": ["", "x"],
    "x BREAK": ["x"],
    "BREAK": [""],
    "u , v BREAK w x y z u v w": ["u,v", "wxyzuv", "w"],  # a comma before a break pulls nothing
}


@pytest.mark.parametrize("prompt", CUTS)
def test_long_prompts_are_cut_as_automatic1111_cuts_them(prompt: str, small: Tokenizer) -> None:
    chunks = chunk(prompt, small)
    assert read(chunks, small) == CUTS[prompt]
    for piece in chunks:
        end = piece.ids.index(small.eos)
        assert piece.ids[0] == small.bos
        assert set(piece.ids[end + 1 :]) <= {small.pad}
        assert len(piece.ids) == len(piece.weights) == 8


def test_a_comma_far_back_does_not_move_the_cut(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(sd1(tmp_path))
    near, far = ("x " * 55 + ", " + "y " * 30, "x " * 54 + ", " + "y " * 30)
    assert [len(text) for text in read(chunk(near, tokenizer), tokenizer)] == [56, 30]
    assert [len(text) for text in read(chunk(far, tokenizer), tokenizer)] == [75, 10]


def test_every_token_carries_the_weight_of_its_words(small: Tokenizer) -> None:
    (first, second) = chunk("x (y z:1.5) [u] v w (x:2)", small)
    assert first.weights == (1, 1, 1.5, 1.5, 1 / 1.1, 1, 1, 1)
    assert second.weights == (1, 2, 1, 1, 1, 1, 1, 1)


@given(st.lists(st.sampled_from(["x", "y", ",", "(z:1.5)", "BREAK"]), max_size=40))
def test_cutting_loses_no_token_and_no_weight(words: list[str]) -> None:
    tokenizer = pair("sd1")[0]
    small = Tokenizer(tokenizer.backend, tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.comma, 7)
    content = [
        (token, weight)
        for piece in chunk(" ".join(words), small)
        for token, weight in list(zip(piece.ids, piece.weights, strict=True))[1 : piece.ids.index(small.eos)]
    ]
    expected = [(small.ids(word.strip("(:1.5)"))[0], 1.5 if "z" in word else 1.0) for word in words if word != "BREAK"]
    assert content == expected


def test_the_longest_english_prompt_fits_and_a_longer_one_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(sd1(tmp_path))
    assert len(chunk("riding the horse, " * 1111, tokenizer)) <= MAX_CHUNKS  # 20 000 characters
    with pytest.raises(InvalidRequest, match="needs 267 chunks of 75 tokens; at most 64"):
        chunk("x " * 20_000, tokenizer)
    with pytest.raises(InvalidRequest, match="chunks"):
        chunk("BREAK " * 3_000 + "x", tokenizer)


@pytest.mark.parametrize("text", ["x" * 20_000, "猫" * 20_000, "\u0301" * 20_000, "!" * 20_000, "'" * 20_000])
def test_a_hostile_word_takes_linear_time(text: str) -> None:
    tokenizer = pair("sd1")[0]
    start = time.process_time()
    tokenizer.ids(text)
    assert time.process_time() - start < 5  # about 0.1 s; anything quadratic takes minutes


def test_half_an_emoji_is_no_error() -> None:
    tokenizer = pair("sd1")[0]
    assert tokenizer.ids("cat \ud83d") == tokenizer.ids("cat \ufffd")
    assert tokenizer.ids("\ud83d\udc31") == tokenizer.ids("🐱")


def test_reading_a_vocabulary_needs_neither_torch_nor_transformers() -> None:
    program = (
        "import sys, safelight.models.networks.tokenize; "
        "assert not {'torch', 'transformers', 'diffusers'} & sys.modules.keys(), 'imported'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def spoil(folder: Path, name: str, text: str | None) -> None:
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("vocab.json", None, "lacks a readable tokenizer"),
        ("merges.txt", None, "lacks a readable tokenizer"),
        ("vocab.json", "{", "lacks a readable tokenizer"),
        ("vocab.json", '{"a": 0}', "no CLIP vocabulary"),
        ("merges.txt", "nonsense words here\n", "lacks a readable tokenizer"),
        ("merges.txt", "no such\n", "no CLIP vocabulary"),
        ("tokenizer.json", "[]", "must hold a JSON object"),
        ("tokenizer.json", "{}", "lacks"),
        ("tokenizer.json", '{"model": {"vocab": {}, "merges": [["a"]]}}', "lacks a readable tokenizer"),
        ("tokenizer_config.json", '{"model_max_length": 2}', "at least 3"),
        ("tokenizer_config.json", '{"model_max_length": "long"}', "missing or invalid"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": "y"}}', "missing or invalid"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": {}}}', "content"),
        ("special_tokens_map.json", '{"pad_token": 3}', "missing or invalid"),
    ],
)
def test_a_damaged_folder_is_named_with_its_problem(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    sd1(tmp_path)
    spoil(tmp_path, name, text)
    with pytest.raises(CorruptModel, match=said):
        Tokenizer.load(tmp_path)
