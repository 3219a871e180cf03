import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.embeddings import vectors, write, write_a1111, write_diffusers, write_sdxl
from tests.models.vocabulary import sd1

from safelight.errors import CorruptModel, InvalidRequest, UnknownModel, UnsafeFile, UnsupportedOption
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.digest import file_sum
from safelight.models.networks.textual_inversion import (
    load_embedding,
    names_in,
    pin_embeddings,
    split_at_names,
)
from safelight.models.networks.tokenize import PLACEHOLDER_ID, Tokenizer, Vector, chunk
from safelight.spec.parts import PinnedEmbedding

NAMES = ["bad-hands", "bad-hands-5", "cat", "By bad artist -neg", "<my-dog>", "neg(v1)", "v1.3"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "embeddings").mkdir()
    return tmp_path / "embeddings"


def pin(folder: Path, *prompts: str, widths: tuple[int, ...] = (32,)) -> list[str]:
    return [
        one.name for one in pin_embeddings(Catalogue(folder.parent), prompts, model="tiny", model_widths=lambda: widths)
    ]


# Files


def test_embeddings_are_named_by_their_files_in_any_subfolder(folder: Path) -> None:
    one, two = write_a1111(folder / "one.safetensors"), write_a1111(folder / "deep" / "er" / "two.v2.safetensors")
    (folder / "notes.txt").write_text("not an embedding")
    catalogue = Catalogue(folder.parent)
    assert catalogue.files("embedding") == {"one": one, "two.v2": two}
    assert catalogue.find("two.v2", "embedding") == two
    with pytest.raises(UnknownModel, match=r"no embedding named '\.\./one'"):
        catalogue.find("../one", "embedding")
    assert Catalogue(folder / "nowhere").files("embedding") == {}


@pytest.mark.parametrize(
    ("write_file", "shapes"),
    [
        (write_a1111, [(2, 32)]),
        (write_diffusers, [(1, 32)]),
        (lambda path: write_diffusers(path, num=5), [(5, 32)]),
        (write_sdxl, [(3, 32), (3, 24)]),
        (lambda path: write(path, {"emb_params": vectors(1, 2, 32), "step": vectors(2, 1)}), [(2, 32)]),
    ],
)
def test_every_layout_is_read(write_file: Any, shapes: list[tuple[int, int]], folder: Path) -> None:
    file = write_file(folder / "x.safetensors")
    embedding = load_embedding(Catalogue(folder.parent), "x", file_sum(file))
    assert [tuple(one.shape) for one in embedding.vectors] == shapes
    assert embedding.num_vectors == shapes[0][0]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": vectors(1, 2, 32), "b": vectors(1, 2, 32)}, "holds a, b, not emb_params"),
        ({"emb_params": vectors(1, 2, 3, 32)}, r"its tensors are \(2, 3, 32\)"),
        ({"emb_params": torch.zeros(0, 32)}, "no embedding"),
        ({"clip_l": vectors(1, 2, 32), "clip_g": vectors(1, 3, 24)}, "different numbers of vectors"),
        ({"emb_params": torch.full((1, 32), torch.nan)}, "not finite"),
    ],
)
def test_a_file_that_is_no_embedding_is_refused(tensors: Any, message: str, folder: Path) -> None:
    file = write(folder / "x.safetensors", tensors)
    with pytest.raises(CorruptModel, match=message):
        load_embedding(Catalogue(folder.parent), "x", file_sum(file))


def test_a_checkpoint_among_the_embeddings_is_not_read(folder: Path) -> None:
    with (folder / "big.safetensors").open("wb") as file:
        os.truncate(file.fileno(), 65 * 2**20)
    with pytest.raises(CorruptModel, match="larger than 64 MiB"):
        pin(folder, "a big apple")
    assert pin(folder, "a small apple") == []


def test_a_file_that_changed_since_the_spec_is_refused(folder: Path) -> None:
    digest = file_sum(write_a1111(folder / "x.safetensors"))
    write_a1111(folder / "x.safetensors", seed=9, num=3)
    with pytest.raises(InvalidRequest, match="in the spec: the picture would differ"):
        load_embedding(Catalogue(folder.parent), "x", digest)
    (folder / "x.safetensors").unlink()
    with pytest.raises(InvalidRequest, match="no embedding named 'x'"):
        load_embedding(Catalogue(folder.parent), "x", digest)


# Names in prompts


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a cat, a dog", ["cat"]),
        ("A CAT", ["cat"]),
        ("category, tomcat, cat_2", []),
        ("(cat:1.2) [cat|dog]", ["cat"]),
        ("cat-like", ["cat"]),
        ("bad-hands-5", ["bad-hands-5"]),
        ("bad-hands, bad-hands-5", ["bad-hands", "bad-hands-5"]),
        ("bad-hands-51", ["bad-hands"]),
        ("by bad artist -neg, x", ["By bad artist -neg"]),
        ("a<my-dog>b", ["<my-dog>"]),
        (r"neg\(v1\)", ["neg(v1)"]),
        ("v1.3 v123", ["v1.3"]),
        ("", []),
    ],
)
def test_a_name_counts_only_as_a_whole_word(prompt: str, found: list[str]) -> None:
    assert names_in(prompt, NAMES) == tuple(sorted(found))


@given(st.lists(st.sampled_from([*NAMES, "a", " ", ", ", "(", "CAT"]), max_size=12))
def test_splitting_at_names_loses_nothing(fragments: list[str]) -> None:
    text = "".join(fragments)
    pieces = split_at_names(text, dict.fromkeys(NAMES, 1))
    assert "".join(pieces).casefold() == text.casefold()
    assert tuple(sorted(set(pieces[1::2]))) == names_in(text, NAMES)
    assert all(names_in(piece, NAMES) == () for piece in pieces[::2])


def test_embeddings_named_in_a_prompt_are_pinned(folder: Path) -> None:
    for name in ("one", "two", "three"):
        write_a1111(folder / f"{name}.safetensors")
    assert pin(folder, "one apple", "two worms, one pear") == ["one", "two"]
    [pinned] = pin_embeddings(Catalogue(folder.parent), ["three"], model="tiny", model_widths=lambda: (32,))
    assert pinned == PinnedEmbedding(name="three", digest=file_sum(folder / "three.safetensors"))


@pytest.mark.parametrize(
    ("file_widths", "model_widths", "message"),
    [
        ((768,), (1024,), r"is for Stable Diffusion 1 \(vectors of 768\); tiny needs 1024"),
        ((1024,), (768,), "is for Stable Diffusion 2"),
        ((768, 1280), (768,), r"is for SDXL \(vectors of 768 and 1280\); tiny needs 768"),
        ((768,), (768, 1280), "is for Stable Diffusion 1 .* tiny needs 768 and 1280"),
        ((33,), (32,), "is for another model"),
    ],
)
def test_an_embedding_of_another_family_is_refused_with_its_name(
    file_widths: tuple[int, ...], model_widths: tuple[int, ...], message: str, folder: Path
) -> None:
    if len(file_widths) == 2:
        write_sdxl(folder / "x.safetensors", widths=file_widths)
    else:
        write_a1111(folder / "x.safetensors", width=file_widths[0])
    with pytest.raises(UnsupportedOption, match=f"embedding 'x' {message}"):
        pin(folder, "an x", widths=model_widths)
    assert pin(folder, "a y", widths=model_widths) == []


def test_a_pickled_embedding_is_refused_and_not_read_as_words(folder: Path) -> None:
    (folder / "evil.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(UnsafeFile, match=r"embedding 'evil' is .*evil\.pt, which can run code"):
        pin(folder, "an evil apple")
    assert pin(folder, "a devil") == []
    write_a1111(folder / "evil.safetensors")
    assert pin(folder, "an evil apple") == ["evil"]


# Tokens


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(sd1(tmp_path_factory.mktemp("tokenizer")))


def test_vectors_count_as_tokens_and_carry_the_weight(tokenizer: Tokenizer) -> None:
    [row] = chunk("a (my-cat:1.5) apple", tokenizer, {"my-cat": 3})
    a, apple = tokenizer.ids("a"), tokenizer.ids("apple")
    assert row.ids[: 2 + 3 + len(apple)] == (tokenizer.bos, *a, *[PLACEHOLDER_ID] * 3, *apple)
    assert row.vectors == tuple((2 + number, Vector("my-cat", number)) for number in range(3))
    assert row.weights[: 2 + 3 + 1] == (1.0, 1.0, 1.5, 1.5, 1.5, 1.0)
    assert len(row.ids) == len(row.weights) == 77


def test_without_embeddings_a_name_is_tokenized_as_text(tokenizer: Tokenizer) -> None:
    assert chunk("a my-cat", tokenizer) == chunk("a my-cat", tokenizer, {"other": 2})
    assert chunk("a my-cat", tokenizer)[0].vectors == ()


@pytest.mark.parametrize("before", range(70, 78))
def test_the_vectors_of_an_embedding_stay_in_one_chunk(before: int, tokenizer: Tokenizer) -> None:
    rows = chunk("a " * before + "my-cat, a", tokenizer, {"my-cat": 4})
    [place] = [number for number, row in enumerate(rows) if row.vectors]
    assert [vector.number for _, vector in rows[place].vectors] == [0, 1, 2, 3]
    assert place == (0 if before + 4 <= 75 else 1)
    assert sum(row.ids.count(tokenizer.ids("a")[0]) for row in rows) == before + 1, "nothing is lost"


def test_an_embedding_longer_than_a_chunk_is_refused(tokenizer: Tokenizer) -> None:
    assert len(chunk("x", tokenizer, {"x": 75})) == 1
    with pytest.raises(InvalidRequest, match="an embedding of 76 vectors; a chunk holds at most 75"):
        chunk("x", tokenizer, {"x": 76})
