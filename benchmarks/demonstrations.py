"""Fine-tune the embedded model in a few minutes on a CPU, and compare pictures and metrics before and after.

    style      a LoRA of an icon set that mini never saw (Streamline Emojis, CC BY 4.0, from npm), on held-out concepts
    object     DreamBooth of an invented object, from five renderings, on backgrounds that they do not have
    word       the same object as a textual inversion: only a new token

    python benchmarks/demonstrations.py [style] [object] [word]

Writes one grid each into docs/images. Prompts and seeds are fixed, not picked.
`tests/lifecycle/mini/test_demonstrations.py` compares the numbers with docs/fine-tuning.md.
"""

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.creature import BACKGROUNDS, creatures, nearer, recognised
from safelight.api import draw_all, unwrapped
from safelight.imaging.grid import paste
from safelight.lifecycle.evaluation.judge import Judge, open_judge
from safelight.lifecycle.evaluation.similarity import kernel_distance, over_white
from safelight.lifecycle.mini.artwork import fetch_package, render, slug_of, svg_of
from safelight.lifecycle.mini.captions import names_of, read_aliases
from safelight.lifecycle.promotion.audit import load_float32
from safelight.lifecycle.training.events import Updated
from safelight.lifecycle.training.recipe import parse_recipe
from safelight.lifecycle.training.train import train
from safelight.models.networks.latents import decode, encode, from_pil, to_pil
from safelight.models.vision.similarity import open_similarity
from safelight.settings import Settings
from safelight.spec import Draft, LoraRequest
from safelight.studio import Studio, open_studio

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PACKAGE = "@iconify-json/streamline-emojis@1.2.4"
HELD_OUT = 40
"""Number of concepts on which the style is measured; they are not in the training data."""
STYLE_START = 0.5
"""Fraction of the steps after which the style LoRA acts: by then the concept is decided, and the style is not."""
SHOWN = 12
CONTEXTS = dict(
    zip(("", " on a red background", " on a blue background", " on a black background"), BACKGROUNDS, strict=True)
)
CLASS = "apple"
"""DreamBooth's class: the nearest one that mini knows."""
NEAR = ("apple", "purple apple", "purple doughnut", "purple clock", "purple fruit with a hole")
"""Prompts for objects similar to it."""
SEEDS = 3


@dataclass(frozen=True, slots=True)
class Setup:
    folder: Path
    settings: Settings
    studio: Studio
    judge: Judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    rows: list[list[Image.Image]]
    """Pictures before and after, and for a style the artist's own."""
    numbers: dict[str, float]


def main() -> None:
    torch.set_num_threads(1)
    shows: dict[str, Callable[[Setup], Result]] = {"style": show_style, "object": show_object, "word": show_word}
    for name in sys.argv[1:] or shows:
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            shown = with_setup(Path(folder), shows[name])
            paste([row[:SHOWN] for row in shown.rows]).save(IMAGES / f"fine-tuning-{name}.png")
            said = ", ".join(f"{what} {number:.3g}" for what, number in shown.numbers.items())
            print(f"{name}: {said}; {time.monotonic() - began:.0f} s", flush=True)


def with_setup(folder: Path, show: Callable[[Setup], Result]) -> Result:
    settings = Settings(home=folder / "home", device="cpu")
    with open_studio(settings) as studio:
        return show(Setup(folder, settings, studio, open_judge()))


def show_style(setup: Setup) -> Result:
    """Pictures of held-out concepts before and after training: their distance from the artist's pictures of the same
    concepts, and whether the judge still recognises the concepts."""
    judge = setup.judge
    icons = {"aliases": {}} | json.loads(
        (fetch_package(PACKAGE, setup.folder / "npm") / "icons.json").read_text("utf-8")
    )
    # Only concepts that mini knows: with others the LoRA would learn concepts as well as the style.
    words = mini_vocabulary()
    drawn = {
        slug: picture for slug in words if slug in icons["icons"] and (picture := rendered(icons, slug)) is not None
    }
    asked = held_out(judge, drawn)
    data = setup.folder / "style"
    data.mkdir()
    seen = [slug for slug in drawn if slug not in asked]
    for slug in seen:
        drawn[slug].save(data / f"{slug}.png")
        (data / f"{slug}.txt").write_text(words[slug])
    learn(setup, "lora", "ink", data, **STYLE)
    # No word stands for the style; the LoRA alone makes it. The prompts are the same before and after.
    prompts = [words[slug] for slug in asked]
    before = draw(setup.studio, prompts, seeds=2)
    after = draw(setup.studio, prompts, seeds=2, loras=(LoraRequest(name="ink", start=STYLE_START),))
    # Encoded and decoded by the model: a LoRA does not change the autoencoder, and its blur would affect the judge.
    real, others = (through_autoencoder(setup.studio, [drawn[slug] for slug in part]) for part in (asked, seen))
    twice = [slug for slug in asked for _ in range(2)]
    numbers = {
        "distance before": style_distance(judge, before, real),
        "distance after": style_distance(judge, after, real),
        "distance of the artist's": style_distance(judge, others, real),
        "named before": named(judge, before, twice),
        "named after": named(judge, after, twice),
        "likeness to the prompt before": likeness(before, [words[slug] for slug in twice]),
        "likeness to the prompt after": likeness(after, [words[slug] for slug in twice]),
    }
    return Result(rows=[before[::2], after[::2], [drawn[slug] for slug in asked]], numbers=numbers)


STYLE: dict[str, Any] = {
    "steps": 300, "batch": 8, "rank": 16, "layers": "all", "rate": 1e-3, "cooldown": 0.5, "caption_dropout": 0.1,
}  # fmt: skip


def mini_vocabulary() -> dict[str, str]:
    """Mini's names of concepts, by slug."""
    aliases = read_aliases()
    return {slug_of(label): names_of(label, aliases)[0] for label in aliases.names}


def held_out(judge: Judge, drawn: dict[str, Image.Image]) -> list[str]:
    """Concepts that the judge, which was not trained on the style either, recognises in it."""
    ranked = judge.rank([*drawn.values()], "concept")
    readable = [slug for slug, order in zip(drawn, ranked, strict=True) if slug in order[:5]]
    random.Random(0).shuffle(readable)
    return readable[:HELD_OUT]


def rendered(icons: Any, slug: str) -> Image.Image | None:
    pixels = render(svg_of(icons, slug), 128)
    return None if pixels is None else over_white(pixels)


def through_autoencoder(studio: Studio, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    vae = load_float32("mini", studio.models.find("mini").digest, studio).vae
    return [out for one in pictures for out in to_pil(decode(vae, encode(vae, from_pil(one)[None])))]


def style_distance(judge: Judge, pictures: Sequence[Image.Image], real: Sequence[Image.Image]) -> float:
    """Kernel distance between two sets of pictures, in the features of the judge's style network."""
    return kernel_distance(judge.features(pictures, "style"), judge.features(real, "style"))


def named(judge: Judge, pictures: Sequence[Image.Image], asked: Sequence[str]) -> float:
    """Share of pictures whose concept is in the judge's top five."""
    ranked = judge.rank(pictures, "concept")
    return sum(slug in order[:5] for order, slug in zip(ranked, asked, strict=True)) / len(asked)


def likeness(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> float:
    """Mean similarity of each picture to its prompt, by the image encoder."""
    eyes = open_similarity()
    return float((eyes.embed_images(pictures) * eyes.embed_prompts(prompts)).sum(1).mean())


def show_object(setup: Setup) -> Result:
    data = creatures(setup.folder / "object")
    said = {"prompt": f"a sks {CLASS}", "class_prompt": f"a {CLASS}"}
    learn(setup, "dreambooth", "creature", data, **OBJECT, **said)
    active = (LoraRequest(name="creature"),)
    prompts = [f"a sks {CLASS}{context}" for context in CONTEXTS]
    before, after = (draw(setup.studio, prompts, seeds=SEEDS, loras=loras) for loras in ((), active))
    class_before, class_after = (draw(setup.studio, [f"a {CLASS}"], seeds=8, loras=loras) for loras in ((), active))
    others = near_misses(setup)
    numbers = {
        "recognised before": recognised(setup.judge, before, others),
        "recognised after": recognised(setup.judge, after, others),
        "class still named before": named(setup.judge, class_before, [f"red-{CLASS}"] * 8),
        "class still named after": named(setup.judge, class_after, [f"red-{CLASS}"] * 8),
    }
    return Result(rows=[before, after], numbers=numbers)


OBJECT: dict[str, Any] = {
    "steps": 250, "batch": 5, "rank": 16, "layers": "all", "rate": 1e-3, "cooldown": 0.5, "class_pictures": 20,
}  # fmt: skip


def show_word(setup: Setup) -> Result:
    data = creatures(setup.folder / "word")
    # Not the usual captions for embeddings ("a rendering of a ..."): mini was not trained on such sentences.
    for path in data.glob("*.png"):
        path.with_suffix(".txt").write_text("a sks-fruit")
    learn(setup, "embedding", "sks-fruit", data, **WORD)
    before, after = (
        draw(setup.studio, [f"a {word}{context}" for context in CONTEXTS], seeds=SEEDS)
        for word in (WORD["init"], "sks-fruit")
    )
    others = near_misses(setup)
    numbers = {
        "recognised before": recognised(setup.judge, before, others),
        "recognised after": recognised(setup.judge, after, others),
        "of these on white": recognised(setup.judge, after[:SEEDS], others),
        "nearer to it than to what words draw": nearer(setup.judge, after, others),
    }
    return Result(rows=[before, after], numbers=numbers)


WORD: dict[str, Any] = {
    "steps": 350, "batch": 8, "vectors": 6, "init": "purple apple bullseye", "rate": 4e-3, "cooldown": 0.5,
    "use_captions": True,
}  # fmt: skip


def near_misses(setup: Setup) -> list[Image.Image]:
    return draw(setup.studio, [f"a {thing}{context}" for thing in NEAR for context in CONTEXTS], seeds=1)


def learn(setup: Setup, kind: str, name: str, data: Path, **options: Any) -> None:
    recipe = parse_recipe({"kind": kind, "name": name, "data": str(data), "tracker": "none"} | options)
    began = time.monotonic()
    for news in train(recipe, setup.settings):
        if isinstance(news, Updated) and news.step % 50 == 0:
            seconds = time.monotonic() - began
            print(f"{name}: step {news.step}/{news.total_steps}, loss {news.loss:.3f}, {seconds:.0f} s", flush=True)


def draw(
    studio: Studio, prompts: Sequence[str], *, seeds: int = 1, loras: tuple[LoraRequest, ...] = ()
) -> list[Image.Image]:
    drafts = [Draft(prompt=prompt, seed=seed, loras=loras) for prompt in prompts for seed in range(seeds)]
    return [one.image for one in unwrapped(draw_all(drafts, studio))]


if __name__ == "__main__":
    main()
