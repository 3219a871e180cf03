"""From drafts to specs: what several drafts of one request share."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from safelight.models.networks.pool import ModelPool
from safelight.resolve.resolve import resolve_all, resolve_upscale
from safelight.settings import Settings
from safelight.spec import Denoised, Draft, Upscale
from safelight.studio import Studio, open_studio


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with open_studio(Settings(home=tmp_path_factory.mktemp("resolve"), device="cpu")) as studio:
        yield studio


def resolved(drafts: Sequence[Draft | Upscale], studio: Studio) -> list[Any]:
    async def gather() -> list[Denoised | Upscale]:
        return [spec async for spec in resolve_all(drafts, studio)]

    return asyncio.run(gather())


def test_drafts_that_differ_in_their_seed_alone_are_resolved_once(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    find = ModelPool.find

    def counted(pool: ModelPool, name: str) -> Any:
        found.append(name)
        return find(pool, name)

    resolved([Draft(prompt="a cat")], studio)
    monkeypatch.setattr(ModelPool, "find", counted)
    one = len(resolved([Draft(prompt="a cat", seed=1)], studio)) * len(found)
    found.clear()
    specs = resolved([Draft(prompt="a cat", seed=seed) for seed in range(30)], studio)
    assert len(found) == one
    assert [spec.seed for spec in specs] == list(range(30))
    assert len({spec.model_copy(update={"seed": 0}).digest() for spec in specs}) == 1


def test_drafts_without_a_seed_get_one_each(studio: Studio) -> None:
    specs = resolved([Draft(prompt="a cat")] * 4, studio)
    assert len({spec.seed for spec in specs}) == 4


def test_drafts_with_other_words_are_resolved_apart(studio: Studio) -> None:
    specs = resolved([Draft(prompt=prompt, seed=1) for prompt in ("a cat", "a dog")], studio)
    assert [spec.prompt for spec in specs] == ["a cat", "a dog"]


def test_an_enlargement_among_them_passes_through(studio: Studio) -> None:
    upscale = resolve_upscale("0" * 64, 2, "lanczos", studio)
    assert resolved([Draft(prompt="a cat", seed=1), upscale], studio)[1] is upscale
