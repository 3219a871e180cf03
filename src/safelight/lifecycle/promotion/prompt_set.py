"""What two models are asked: things that the second one learnt, and things that should have stayed as they were."""

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
    """It has nothing to do with what was learnt."""
    judged_as: str
    """The prompt in words that an image encoder knows; empty where there are none."""


def questions_for(recipe: AnyRecipe | None, captions: Sequence[str]) -> list[ComparisonPrompt]:
    """What a version was taught, as its recipe and captions say it, and the neutral prompts."""
    match recipe:
        case DreamBoothRecipe(prompt=prompt, class_prompt=kind):
            learnt = [(prompt + where, kind + where if kind else "") for where in CONTEXTS]
        case EmbeddingRecipe(name=name, init=init):
            known = "" if init == "*" else f"a {init}"
            learnt = [(f"a {name}{where}", known + where if known else "") for where in CONTEXTS]
        case _:
            said = [caption for caption in dict.fromkeys(captions) if caption]
            learnt = [(caption, caption) for caption in said[:: max(1, len(said) // MAX_CAPTIONS)][:MAX_CAPTIONS]]
    asked = [ComparisonPrompt(prompt=prompt, neutral=False, judged_as=known) for prompt, known in learnt]
    return asked + [ComparisonPrompt(prompt=prompt, neutral=True, judged_as=prompt) for prompt in NEUTRAL]


def read_questions(path: Path) -> list[ComparisonPrompt]:
    """A prompt a line; those after a line `neutral:` have nothing to do with what was learnt.

    Raises:
        InvalidRequest: the file cannot be read, or says nothing.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from None
    questions: list[ComparisonPrompt] = []
    neutral = False
    for line in lines:
        if line == "neutral:":
            neutral = True
        elif line and not line.startswith("#"):
            questions.append(ComparisonPrompt(prompt=line, neutral=neutral, judged_as=line))
    if not questions:
        raise InvalidRequest(f"{path} holds no prompts: write one a line")
    return questions
