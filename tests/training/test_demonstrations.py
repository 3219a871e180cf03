"""What docs/fine-tuning.md says of the embedded model, measured again; minutes each."""

import shutil
from pathlib import Path

import pytest
from benchmarks.demonstrations import on_a_bench, show_object, show_style, show_word
from tests.tiny_models import one_thread

__all__ = ["one_thread"]

pytestmark = pytest.mark.slow


@pytest.mark.skipif(shutil.which("npm") is None, reason="the icons come from npm")
def test_a_lora_brings_a_style_that_the_model_never_saw(tmp_path: Path) -> None:
    """A good part of the way to the artist's own pictures; half is named by a judge that goes by colour, too."""
    numbers = on_a_bench(tmp_path, show_style).numbers
    assert numbers["distance after"] < 0.65 * numbers["distance before"]
    assert numbers["named after"] >= 0.5


def test_dreambooth_draws_one_thing_on_backgrounds_it_was_not_seen_on(tmp_path: Path) -> None:
    numbers = on_a_bench(tmp_path, show_object).numbers
    assert numbers["recognised before"] == 0
    assert numbers["recognised after"] >= 0.7
    assert numbers["class still named after"] >= numbers["class still named before"] - 0.25


def test_a_new_word_alone_brings_the_thing(tmp_path: Path) -> None:
    numbers = on_a_bench(tmp_path, show_word).numbers
    assert numbers["recognised before"] == 0
    assert numbers["recognised after"] >= 0.4
