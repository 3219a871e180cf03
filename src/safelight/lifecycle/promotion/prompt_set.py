"""Prompts for a comparison: taught ones, which the second model was trained on, and neutral ones, which should not
change."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safelight.errors import InvalidRequest
from safelight.lifecycle.training.recipe import AnyRecipe, DreamBoothRecipe, EmbeddingRecipe

NEUTRAL = (
    "a red apple", "a blue car", "a cat", "a house", "a slice of pizza", "a smiling face", "a green tree", "a rocket",
)  # fmt: skip
CONTEXTS = ("", " on a red background", " on a yellow background", " on a green background")
MAX_CAPTIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonPrompt:
    prompt: str
    neutral: bool
    """It is unrelated to the training data."""
    judged_as: str
    """The prompt in words that an image encoder knows; empty if there are none."""


def prompts_for(recipe: AnyRecipe | None, captions: Sequence[str]) -> list[ComparisonPrompt]:
    """Taught prompts from a version's recipe and captions, then the neutral ones."""
    match recipe:
        case DreamBoothRecipe(prompt=prompt, class_prompt=class_prompt):
            taught = [(prompt + where, class_prompt + where if class_prompt else "") for where in CONTEXTS]
        case EmbeddingRecipe(name=name, init=init):
            known = "" if init == "*" else f"a {init}"
            taught = [(f"a {name}{where}", known + where if known else "") for where in CONTEXTS]
        case _:
            distinct = [caption for caption in dict.fromkeys(captions) if caption]
            stride = max(1, len(distinct) // MAX_CAPTIONS)
            taught = [(caption, caption) for caption in distinct[::stride][:MAX_CAPTIONS]]
    prompts = [ComparisonPrompt(prompt=prompt, neutral=False, judged_as=known) for prompt, known in taught]
    return prompts + [ComparisonPrompt(prompt=prompt, neutral=True, judged_as=prompt) for prompt in NEUTRAL]


def read_prompt_file(path: Path) -> list[ComparisonPrompt]:
    """Read one prompt per line; those after a line `neutral:` are neutral. Lines with # are comments.

    Raises:
        InvalidRequest: the file cannot be read, or has no prompts.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from None
    prompts: list[ComparisonPrompt] = []
    neutral = False
    for line in lines:
        if line == "neutral:":
            neutral = True
        elif line and not line.startswith("#"):
            prompts.append(ComparisonPrompt(prompt=line, neutral=neutral, judged_as=line))
    if not prompts:
        raise InvalidRequest(f"{path} has no prompts: write one per line")
    return prompts
