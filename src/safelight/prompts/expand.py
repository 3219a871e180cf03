"""Expand one draft to several: consecutive seeds, and prompts with choices in them (`templates.py`)."""

from pathlib import Path
from typing import Literal

from safelight.errors import InvalidRequest
from safelight.prompts.templates import combinations, draw
from safelight.prompts.wildcards import Wildcards
from safelight.spec import Draft, parse_draft
from safelight.spec.complete import choose_seed, seeds_from
from safelight.spec.marks import Mark, marked, with_marked

MAX_PICTURES = 1000
Expand = Literal["wildcards", "combinatorial"]
"""wildcards: each image's seed selects its choices. combinatorial: every combination, with the same seeds."""


def with_consecutive_seeds(draft: Draft, n: int) -> list[Draft]:
    """Return `n` drafts with consecutive seeds."""
    if not 1 <= n <= MAX_PICTURES:
        raise InvalidRequest(f"n must be 1 to {MAX_PICTURES}, not {n}")
    seed = choose_seed() if draft.seed is None else draft.seed
    return [parse_draft(draft.model_dump() | {"seed": each}) for each in seeds_from(seed, n)]


def expand_draft(draft: Draft, n: int, *, expand: Expand | None, folder: Path) -> list[Draft]:
    """Return `n` drafts with random choices in their prompts, or `n` drafts for each combination of choices.

    Raises:
        InvalidRequest: an invalid template or wildcard, or more than `MAX_PICTURES` images.
    """
    drafts = with_consecutive_seeds(draft, n)
    wildcards = Wildcards(folder)
    templates = tuple(marked(draft, Mark.PROMPT))
    match expand:
        case None:
            return drafts
        case "wildcards":
            return [with_prompts(each, draw(templates, wildcards, seed=required_seed(each))) for each in drafts]
        case "combinatorial":
            prompt_pairs = combinations(templates, wildcards, max_count=MAX_PICTURES // n)
            return [with_prompts(each, prompts) for prompts in prompt_pairs for each in drafts]


def required_seed(draft: Draft) -> int:
    assert draft.seed is not None
    return draft.seed


def with_prompts(draft: Draft, prompts: list[str] | tuple[str, ...]) -> Draft:
    following = iter(prompts)
    return parse_draft(with_marked(draft.model_dump(), Draft, lambda _template: next(following), Mark.PROMPT))
