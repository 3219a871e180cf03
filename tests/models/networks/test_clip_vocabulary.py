from pathlib import Path

import pytest

from safelight.models.networks.clip_vocabulary import NUM_WORDS, clip_tokenizer, read_merges
from safelight.models.networks.tokenize import chunk

PROMPTS = ["a photo of a cat", "", "café, 猫! don't 100% (really)", "naïve\t\nspaces  ...", "🙂 emoji" * 3]


def test_the_example_prompt_of_clips_documentation_has_the_published_ids() -> None:
    assert chunk("a photo of a cat", clip_tokenizer())[0].ids[:8] == (49406, 320, 1125, 539, 320, 2368, 49407, 49407)
    assert chunk("a photo of a cat", clip_tokenizer(pad="!"))[0].ids[6:9] == (49407, 0, 0)
    assert clip_tokenizer().vocabulary_size == NUM_WORDS


@pytest.mark.parametrize("prompt", PROMPTS)
def test_transformers_reads_the_same_vocabulary_the_same_way(prompt: str, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    vocabulary, merges = read_merges()
    theirs = CLIPTokenizer(vocab=vocabulary, merges=merges)
    assert clip_tokenizer().ids(prompt) == theirs(prompt, add_special_tokens=False)["input_ids"]
