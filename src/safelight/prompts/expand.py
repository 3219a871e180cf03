"""One draft becomes several: consecutive seeds, and prompts with choices in them (`templates.py`)."""

from pathlib import Path
from typing import Literal

from safelight.errors import InvalidRequest
from safelight.prompts.templates import combinations, draw
from safelight.prompts.wildcards import Wildcards
from safelight.spec import Draft, parse_draft
from safelight.spec.complete import choose_seed, seeds_from

MAX_PICTURES = 1000
Expand = Literal["wildcards", "combinatorial"]
"""wildcards: each picture's choices are drawn by its seed. combinatorial: every combination, with the same seeds."""


def number(draft: Draft, n: int) -> list[Draft]:
    """`n` drafts with consecutive seeds."""
    if not 1 <= n <= MAX_PICTURES:
        raise InvalidRequest(f"n must be 1 to {MAX_PICTURES}, not {n}")
    seed = choose_seed() if draft.seed is None else draft.seed
    return [parse_draft(draft.model_dump() | {"seed": one}) for one in seeds_from(seed, n)]


def expanded(draft: Draft, n: int, *, expand: Expand | None, folder: Path) -> list[Draft]:
    """`n` drafts, with the choices in their prompts made; or `n` for each combination of choices.

    Raises:
        InvalidRequest: a template or a wildcard that cannot be, or more than `MAX_PICTURES` pictures.
    """
    drafts = number(draft, n)
    wildcards = Wildcards(folder)
    templates = (draft.prompt, draft.negative_prompt)
    match expand:
        case None:
            return drafts
        case "wildcards":
            return [with_prompts(one, draw(templates, wildcards, seed=seed_of(one))) for one in drafts]
        case "combinatorial":
            every = combinations(templates, wildcards, most=MAX_PICTURES // n)
            return [with_prompts(one, prompts) for prompts in every for one in drafts]


def seed_of(draft: Draft) -> int:
    assert draft.seed is not None
    return draft.seed


def with_prompts(draft: Draft, prompts: list[str] | tuple[str, ...]) -> Draft:
    prompt, negative_prompt = prompts
    return parse_draft(draft.model_dump() | {"prompt": prompt, "negative_prompt": negative_prompt})
