import re
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.errors import InvalidRequest
from safelight.prompts.expand import expand_draft, with_consecutive_seeds
from safelight.prompts.templates import combinations, draw, read_template
from safelight.prompts.wildcards import Wildcards
from safelight.spec import Draft


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "colour.txt").write_text("# colours\nred\n\n  green \n{dark|light} blue\n", encoding="utf-8")
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "wild.txt").write_text("a __colour__ fox\n", encoding="utf-8")
    (tmp_path / "clothes.yaml").write_text(
        "hats:\n  summer: [straw hat, cap]\n  number: [7]\nempty:\n", encoding="utf-8"
    )
    (tmp_path / "animals" / "tame.yml").write_text("pets:\n  - cat\n  - dog\n", encoding="utf-8")
    (tmp_path / "often.txt").write_text("3::often\nseldom\n0::never\n", encoding="utf-8")
    return tmp_path


def prompt_pairs(template: str, folder: Path = Path("nowhere"), max_count: int = 1000) -> list[str]:
    return [words for (words,) in combinations([template], Wildcards(folder), max_count=max_count)]


def one(template: str, seed: int, folder: Path = Path("nowhere")) -> str:
    [words] = draw([template], Wildcards(folder), seed=seed)
    return words


CASES = {
    "a red apple": ["a red apple"],
    "": [""],
    "a {red|green} apple": ["a red apple", "a green apple"],
    "{a|b}{c|d}": ["ac", "ad", "bc", "bd"],
    "{a|{b|c}}": ["a", "b", "c"],
    "{|a}b": ["b", "ab"],
    "{}": [""],
    "{a|a}": ["a"],
    "{3::a|0.5::b}": ["a", "b"],
    "{2$$a|b|c}": ["a, b", "a, c", "b, a", "b, c", "c, a", "c, b"],
    "{2$$ and $$a|b}": ["a and b", "b and a"],
    "{2$$$$a|b}": ["ab", "ba"],
    "{0-1$$a|b}": ["", "a", "b"],
    "{-1$$a|b}": ["", "a", "b"],
    "{1-$$a|b}": ["a", "b", "a, b", "b, a"],
    "{2$${a|b}|c}": ["a, c", "b, c", "c, a", "c, b"],
    "{[a|b]|c}": ["[a|b]", "c"],
    "[a|b]": ["[a|b]"],
    "(a:1.2) [b:c:0.5] AND d :2": ["(a:1.2) [b:c:0.5] AND d :2"],
    r"\{a\|b\}": [r"\{a\|b\}"],
    r"{a\|b|c}": [r"a\|b", "c"],
    "}|a": ["}|a"],
    "50% of #1, $5, a_b __": ["50% of #1, $5, a_b __"],
    "__colour__ hat": ["red hat", "green hat", "dark blue hat", "light blue hat"],
    "__animals/wild__": ["a red fox", "a green fox", "a dark blue fox", "a light blue fox"],
    "__hats/summer__, __hats/number__": ["straw hat, 7", "cap, 7"],
    "__animals/pets__": ["cat", "dog"],
    "{2$$__animals/pets__|x}": ["cat, x", "dog, x", "x, cat", "x, dog"],
}


@pytest.mark.parametrize("template", CASES)
def test_every_combination_is_made_once(template: str, folder: Path) -> None:
    assert prompt_pairs(template, folder) == CASES[template]


@pytest.mark.parametrize("template", CASES)
def test_every_option_is_drawn_and_nothing_else(template: str, folder: Path) -> None:
    drawn = [one(template, seed, folder) for seed in range(200)]
    assert set(drawn) == set(CASES[template])
    assert drawn == [one(template, seed, folder) for seed in range(200)], "a seed always draws the same"


def test_weights_are_relative_probabilities(folder: Path) -> None:
    for template in ("{3::often|seldom|0::never}", "__often__"):
        drawn = Counter(one(template, seed, folder) for seed in range(2000))
        assert drawn.keys() == {"often", "seldom"}
        assert 0.7 < drawn["often"] / 2000 < 0.8  # 0.75, and five standard deviations of 0.01


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("a {red|green", "the brace before 'red|green' is never closed"),
        ("{3$$a|b}", r"3\$\$ asks for 3 of 2 options"),
        ("{2-1$$a|b}", "asks for 1 of 2"),
        ("{21$$" + "|".join("a" * 30) + "}", "asks for 21 options; at most 20"),
        ("{" * 12 + "a" + "}" * 12, "variants nest deeper than 10"),
        ("__color__", "no wildcard 'color' in .*; did you mean 'colour'"),
        ("__hats__", "no wildcard 'hats'"),
        ("__../secret__", r"wildcard '../secret' leads out of the folder"),
        ("__animals/../../secret__", "leads out of the folder"),
        ("__/etc/passwd__", "leads out of the folder"),
        ("__nothing__", "wildcard 'nothing' has no options"),
        ("__ring-a__", "wildcard 'ring-a' refers to itself: ring-a > ring-b > ring-a"),
        ("__link__", "is a link out of the folder"),
        ("__large__", "is larger than 1 MiB"),
    ],
)
def test_an_invalid_template_is_refused_in_either_expansion(template: str, said: str, folder: Path) -> None:
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    (folder / "nothing.txt").write_text("# nothing\n")
    (folder / "ring-a.txt").write_text("__ring-b__")
    (folder / "ring-b.txt").write_text("x {__ring-a__}")
    (folder / "large.txt").write_text("a\n" * 2**20)
    with pytest.raises(InvalidRequest, match=said):
        one(template, 1, folder)
    with pytest.raises(InvalidRequest, match=said):
        prompt_pairs(template, folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [b", "is not YAML"),
        ("- a\n- b", "the file is not a list of options under a key"),
        ("a: b", "a is not a list of options"),
        ("a: [[b]]", "a holds .*, which is not text"),
        ("a: &a\n  b: *a", "keys nest deeper than 10"),
        ("a: !!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_yaml_that_holds_anything_else_is_refused(text: str, said: str, folder: Path) -> None:
    (folder / "bad.yaml").write_text(text)
    with pytest.raises(InvalidRequest, match=said):
        one("__hats/summer__", 1, folder)


def test_exponential_templates_are_refused_before_they_are_expanded(folder: Path) -> None:
    for name, below in zip("abcdefgh", "bcdefghi", strict=True):
        (folder / f"{name}.txt").write_text(f"__{below}__" * 10)
    (folder / "i.txt").write_text("x\ny")
    start = time.process_time()
    with pytest.raises(InvalidRequest, match="more than a million million combinations; at most 1000"):
        prompt_pairs("{a|b}" * 3000)
    with pytest.raises(InvalidRequest, match="1024 combinations"):
        prompt_pairs("{a|b}" * 10)
    with pytest.raises(InvalidRequest, match="more than a million million"):
        prompt_pairs("{20$$" + "|".join("a" * 5000) + "}")
    with pytest.raises(InvalidRequest, match="more than a million million"):
        prompt_pairs("__a__", folder)
    with pytest.raises(InvalidRequest, match="more than 1000 choices"):
        one("__a__", 1, folder)
    with pytest.raises(InvalidRequest, match="more than 1000 choices"):
        one("{a|b}" * 3000, 1)
    (folder / "long.txt").write_text("x" * 15_000)
    with pytest.raises(InvalidRequest, match="longer than 20000 characters"):
        one("__long__" * 2, 1, folder)
    assert time.process_time() - start < 5  # about 0.1 s


@given(st.text(alphabet="ab{}|$[]\\1:_ ", max_size=40), st.integers(0, 2**64 - 1))
def test_any_template_is_drawn_or_refused(template: str, seed: int) -> None:
    try:
        words = one(template, seed)
        all_of_them = prompt_pairs(template)
    except InvalidRequest:
        return
    assert words in all_of_them


@given(st.text(alphabet=st.characters(exclude_characters="{}_\\"), max_size=60))
def test_a_prompt_without_choices_is_unchanged(prompt: str) -> None:
    assert one(prompt, 1) == prompt
    assert all(isinstance(node, str) for node in read_template(prompt))


# Drafts


def draft(prompt: str, **wishes: object) -> Draft:
    return Draft.model_validate({"prompt": prompt, "seed": 7} | wishes)


def test_drafts_are_not_expanded_by_default(folder: Path) -> None:
    plain = draft("a {red|green} __colour__")
    assert expand_draft(plain, 3, expand=None, folder=folder) == with_consecutive_seeds(plain, 3)
    assert {one.prompt for one in with_consecutive_seeds(plain, 3)} == {plain.prompt}


def test_each_seed_draws_the_same_prompt_for_any_number_of_images(folder: Path) -> None:
    wish = draft("a {1|2|3|4|5|6|7|8} __colour__", negative_prompt="{x|y}")
    eight = expand_draft(wish, 8, expand="wildcards", folder=folder)
    assert [one.seed for one in eight] == list(range(7, 15))
    assert len({one.prompt for one in eight}) > 3
    assert {one.negative_prompt for one in eight} == {"x", "y"}
    [third] = expand_draft(wish.model_copy(update={"seed": 9}), 1, expand="wildcards", folder=folder)
    assert third == eight[2]
    assert not any(re.search("[{}_]", one.prompt) for one in eight)


def test_every_combination_has_the_same_seeds(folder: Path) -> None:
    made = expand_draft(draft("{a|b}", negative_prompt="{c|d}"), 2, expand="combinatorial", folder=folder)
    assert [(one.prompt, one.negative_prompt, one.seed) for one in made] == [
        (prompt, negative, seed) for prompt in "ab" for negative in "cd" for seed in (7, 8)
    ]


def test_combinations_count_against_the_number_of_pictures(folder: Path) -> None:
    assert len(expand_draft(draft("{a|b|c|d}"), 250, expand="combinatorial", folder=folder)) == 1000
    with pytest.raises(InvalidRequest, match="4 combinations; at most 3"):
        expand_draft(draft("{a|b|c|d}"), 251, expand="combinatorial", folder=folder)
