"""Prompts and pictures of a request are found by their marks, in whichever field they are."""

from typing import Any

from safelight.spec import Draft
from safelight.spec.marks import Mark, marked, with_marked

FIELDS: dict[str, Any] = {
    "prompt": "one",
    "negative_prompt": "two",
    "init": "a" * 64,
    "mask": "b" * 64,
    "controls": ({"model": "canny", "image": "c" * 64, "hint": "d" * 64},),
    "picture_prompts": ({"model": "plus", "image": "e" * 64, "digest": "0" * 64},),
    "regions": ({"prompt": "three", "mask": "f" * 64}, {"prompt": "four", "box": (0, 0, 1, 1)}),
}


def test_all_prompts_and_all_pictures() -> None:
    draft = Draft(**FIELDS)
    assert list(marked(draft, Mark.PROMPT)) == ["one", "two", "three", "four"]
    assert {digest[0] for digest in marked(draft, Mark.PICTURE)} == set("abdef")
    assert [digest[0] for digest in marked(draft, Mark.SOURCE)] == ["c"]


def test_marked_values_are_changed_before_they_are_validated() -> None:
    fields = FIELDS | {"init": b"file", "regions": [{"prompt": "three", "mask": b"mask"}, "no region"], "width": None}
    changed = with_marked(fields, Draft, lambda value: f"<{value!r}>", Mark.PICTURE)
    assert changed["init"] == "<b'file'>"
    assert changed["regions"] == [{"prompt": "three", "mask": "<b'mask'>"}, "no region"]
    assert changed["prompt"] == "one"
    assert fields["init"] == b"file"


def test_one_by_one_in_the_order_in_which_they_are_found() -> None:
    draft, following = Draft(**FIELDS), iter("ABCD")
    changed = with_marked(draft.model_dump(), Draft, lambda _old: next(following), Mark.PROMPT)
    assert list(marked(Draft.model_validate(changed), Mark.PROMPT)) == ["A", "B", "C", "D"]
