"""The vocabulary: CLIP's file layout, read back by transformers."""

from pathlib import Path

from transformers import CLIPTokenizer

from safelight.lifecycle.mini.mini import TextRecipe
from safelight.lifecycle.mini.tokenizer import train_tokenizer

RECIPE = TextRecipe(vocabulary=600, max_length=16)


def read_back(folder: Path) -> CLIPTokenizer:
    train_tokenizer(["red apple", "blue car", "a slice of pizza"] * 4, RECIPE, folder)
    return CLIPTokenizer.from_pretrained(folder)


def test_text_comes_back_in_lower_case(tmp_path: Path) -> None:
    tokenizer = read_back(tmp_path)
    ids = tokenizer("A Red Apple, 42 zebras!").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a red apple , 4 2 zebras !"


def test_known_words_are_one_token(tmp_path: Path) -> None:
    assert read_back(tmp_path).tokenize("red apple") == ["red</w>", "apple</w>"]


def test_ids_are_padded_with_the_end_token_to_the_model_length(tmp_path: Path) -> None:
    tokenizer = read_back(tmp_path)
    ids = tokenizer("red", padding="max_length", truncation=True).input_ids
    assert len(tokenizer) == RECIPE.vocabulary
    assert len(ids) == tokenizer.model_max_length == RECIPE.max_length
    assert ids[0] == tokenizer.bos_token_id == RECIPE.vocabulary - 2
    assert set(ids[2:]) == {tokenizer.eos_token_id} == {RECIPE.vocabulary - 1}


def test_a_long_prompt_is_cut_to_the_model_length(tmp_path: Path) -> None:
    tokenizer = read_back(tmp_path)
    assert len(tokenizer("red apple " * 40, truncation=True).input_ids) == RECIPE.max_length


def test_any_script_has_tokens(tmp_path: Path) -> None:
    tokenizer = read_back(tmp_path)
    assert tokenizer.unk_token_id not in tokenizer("日本 é ?").input_ids[1:-1]
