"""What fine-tuning does to the embedded model, in a few minutes on a CPU: before and after, in pictures and numbers.

    style      a LoRA of an icon set that mini never saw (Fluent Emoji High Contrast, MIT, from npm), on things kept out
    object     DreamBooth of an invented creature, from five renderings, on backgrounds that they do not have
    word       the same creature as a textual inversion: a token and nothing else

    python benchmarks/demonstrations.py [style] [object] [word]

Writes one grid each into docs/images. Fixed prompts and seeds, nothing picked. `tests/training/test_demonstrations.py`
holds the numbers to what docs/fine-tuning.md says.
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
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1]))

from safelight.evaluation.judge import Judge, open_judge
from safelight.evaluation.likeness import kernel_distance, over_white
from safelight.pictures import draw_all, unwrapped
from safelight.settings import Settings
from safelight.spec import Draft, LoraWish
from safelight.studio import Studio, open_studio
from safelight.training.artwork import fetch_package, render, svg_of
from safelight.training.grid import paste
from safelight.training.news import Trained
from safelight.training.recipe import parse_recipe
from safelight.training.train import train

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PACKAGE = "@iconify-json/fluent-emoji-high-contrast@1.2.6"
KEPT_OUT = 40
"""Things that the style is measured on, and that the run does not see."""
SHOWN = 10
RENDERINGS = 5
CONTEXTS = {
    "white": "",
    "#ff4f1f": " on a red background",
    "#2a9fe8": " on a blue background",
    "#202020": " on a black background",
}
"""Words, and the colour that mini makes of them."""
CLASS = "alien"
"""What the creature is one of, as far as mini knows."""
OTHERS = ("robot", "ghost", "frog", "owl")
SEEDS = 3


@dataclass(frozen=True, slots=True)
class Bench:
    folder: Path
    settings: Settings
    studio: Studio
    judge: Judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    before: list[Image.Image]
    after: list[Image.Image]
    numbers: dict[str, float]


def main() -> None:
    torch.set_num_threads(1)
    shows: dict[str, Callable[[Bench], Shown]] = {"style": show_style, "object": show_object, "word": show_word}
    for name in sys.argv[1:] or shows:
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            shown = on_a_bench(Path(folder), shows[name])
            paste([shown.before[:SHOWN], shown.after[:SHOWN]]).save(IMAGES / f"fine-tuning-{name}.png")
            said = ", ".join(f"{what} {number:.3g}" for what, number in shown.numbers.items())
            print(f"{name}: {said}; {time.monotonic() - began:.0f} s", flush=True)


def on_a_bench(folder: Path, show: Callable[[Bench], Shown]) -> Shown:
    settings = Settings(home=folder / "home", device="cpu")
    with open_studio(settings) as studio:
        return show(Bench(folder, settings, studio, open_judge()))


def show_style(bench: Bench) -> Shown:
    """Things that the run did not see, before and after: how far they are from that style's own pictures of things that
    it did not see either, and whether the judge names them."""
    judge = bench.judge
    icons = {"aliases": {}} | json.loads(
        (fetch_package(PACKAGE, bench.folder / "npm") / "icons.json").read_text("utf-8")
    )
    # Of things that mini has no word for it would learn words, and not only the style.
    drawn = {
        name: picture
        for name in judge.eyes["concept"].classes
        if name in icons["icons"] and (picture := rendered(icons, name)) is not None
    }
    asked = kept_out(judge, drawn)
    data = bench.folder / "style"
    data.mkdir()
    seen = [name for name in drawn if name not in asked]
    for name in seen:
        drawn[name].save(data / f"{name}.png")
        (data / f"{name}.txt").write_text(name.replace("-", " "))
    learn(bench, "lora", "ink", data, **STYLE)
    # The style has no word: it is what the LoRA does. Prompts are the same before and after.
    prompts = [name.replace("-", " ") for name in asked]
    before, after = draw(bench.studio, prompts), draw(bench.studio, prompts, lora="ink")
    real = [drawn[name] for name in asked]
    best = style_distance(judge, [drawn[name] for name in seen], real)
    return Shown(
        before=before,
        after=after,
        numbers={
            "distance before": style_distance(judge, before, real),
            "distance after": style_distance(judge, after, real),
            "distance of the artist's": best,
            "named before": named(judge, before, asked),
            "named after": named(judge, after, asked),
        },
    )


STYLE: dict[str, Any] = {
    "steps": 300, "batch": 8, "rank": 16, "layers": "all", "rate": 1e-3, "cooldown": 0.5, "caption_dropout": 0.1,
}  # fmt: skip


def kept_out(judge: Judge, drawn: dict[str, Image.Image]) -> list[str]:
    """Things mini knows which the judge, who never saw the style either, can name in it."""
    ranked = judge.rank([*drawn.values()], "concept")
    readable = [name for name, order in zip(drawn, ranked, strict=True) if name in order[:5]]
    random.Random(0).shuffle(readable)
    return readable[:KEPT_OUT]


def rendered(icons: Any, name: str) -> Image.Image | None:
    pixels = render(svg_of(icons, name), 128)
    return None if pixels is None else over_white(pixels)


def style_distance(judge: Judge, pictures: Sequence[Image.Image], real: Sequence[Image.Image]) -> float:
    """Between two sets of pictures, by what tells the judge one style from another."""
    return kernel_distance(judge.features(pictures, "style"), judge.features(real, "style"))


def named(judge: Judge, pictures: Sequence[Image.Image], asked: Sequence[str]) -> float:
    """The share of pictures whose name is among the judge's five likeliest."""
    ranked = judge.rank(pictures, "concept")
    return sum(name in order[:5] for order, name in zip(ranked, asked, strict=True)) / len(asked)


def show_object(bench: Bench) -> Shown:
    data = creatures(bench.folder / "object")
    said = {"prompt": f"a sks {CLASS}", "class_prompt": f"a {CLASS}"}
    learn(bench, "dreambooth", "creature", data, **OBJECT, **said)
    prompts = [f"a sks {CLASS}{context}" for context in CONTEXTS.values()]
    before, after = (draw(bench.studio, prompts, seeds=SEEDS, lora=lora) for lora in (None, "creature"))
    class_before, class_after = (draw(bench.studio, [f"a {CLASS}"], seeds=8, lora=lora) for lora in (None, "creature"))
    numbers = {
        "recognised before": recognised(bench, before),
        "recognised after": recognised(bench, after),
        "class still named before": named(bench.judge, class_before, [CLASS] * 8),
        "class still named after": named(bench.judge, class_after, [CLASS] * 8),
    }
    return Shown(before=before, after=after, numbers=numbers)


OBJECT: dict[str, Any] = {
    "steps": 400, "batch": 5, "rank": 16, "layers": "all", "rate": 1e-3, "cooldown": 0.5, "class_pictures": 20,
}  # fmt: skip


def show_word(bench: Bench) -> Shown:
    data = creatures(bench.folder / "word")
    # The embedded model has never read sentences like "a rendering of a ...", with which embeddings are usually taught.
    for path in data.glob("*.png"):
        path.with_suffix(".txt").write_text("a sks-creature")
    learn(bench, "embedding", "sks-creature", data, **WORD, init=CLASS)
    before = draw(bench.studio, [f"a {CLASS}{context}" for context in CONTEXTS.values()], seeds=SEEDS)
    after = draw(bench.studio, [f"a sks-creature{context}" for context in CONTEXTS.values()], seeds=SEEDS)
    numbers = {
        "recognised before": recognised(bench, before),
        "recognised after": recognised(bench, after),
    }
    return Shown(before=before, after=after, numbers=numbers)


WORD: dict[str, Any] = {"steps": 400, "batch": 8, "vectors": 4, "rate": 3e-3, "cooldown": 0.5, "use_captions": True}


def learn(bench: Bench, kind: str, name: str, data: Path, **wishes: Any) -> None:
    recipe = parse_recipe({"kind": kind, "name": name, "data": str(data), "tracker": "none"} | wishes)
    began = time.monotonic()
    for news in train(recipe, bench.settings):
        if isinstance(news, Trained) and news.step % 50 == 0:
            seconds = time.monotonic() - began
            print(f"{name}: step {news.step}/{news.total_steps}, loss {news.loss:.3f}, {seconds:.0f} s", flush=True)


def draw(studio: Studio, prompts: Sequence[str], *, seeds: int = 1, lora: str | None = None) -> list[Image.Image]:
    loras = (LoraWish(name=lora),) if lora else ()
    drafts = [Draft(prompt=prompt, seed=seed, loras=loras) for prompt in prompts for seed in range(seeds)]
    return [one.image for one in unwrapped(draw_all(drafts, studio))]


def creatures(folder: Path) -> Path:
    """Renderings of a creature that is in no emoji set, on white: teal, one eye, orange stripes, three legs."""
    folder.mkdir()
    for pose in range(RENDERINGS):
        creature(pose).save(folder / f"{pose}.png")
    return folder


def creature(pose: int, background: str = "white") -> Image.Image:
    large = Image.new("RGB", (512, 512), background)
    pen = ImageDraw.Draw(large)
    for x in (170, 245, 320):
        pen.rounded_rectangle((x, 370, x + 40, 450), 16, fill="#0b5f63")
    pen.ellipse((110, 90, 410, 410), fill="#149aa0")
    for y in (270, 315, 355):
        pen.rounded_rectangle((150 + (y - 270) // 4, y, 370 - (y - 270) // 4, y + 20), 10, fill="#f28c28")
    pen.ellipse((195, 130, 325, 250), fill="white")
    pen.ellipse((235 + 6 * pose, 160, 295 + 6 * pose, 220), fill="#222222")
    turned = large.rotate(8 * (pose - 2), Image.Resampling.BICUBIC, fillcolor=background)
    margin = 10 * pose
    return turned.crop((margin, margin, 512 - margin, 512 - margin)).resize((128, 128))


def recognised(bench: Bench, pictures: Sequence[Image.Image]) -> float:
    """The share of pictures that are liker to the creature, drawn on the backgrounds that were asked for, than to
    anything that mini itself draws on them: the creature's class, and others with faces."""
    prompts = [f"a {kind}{context}" for kind in (CLASS, *OTHERS) for context in CONTEXTS.values()]
    own = [creature(pose, background) for pose in range(RENDERINGS) for background in CONTEXTS]
    drawn, creatures, others = (
        unit(bench.judge.features(part)) for part in (pictures, own, draw(bench.studio, prompts))
    )
    return float(((drawn @ creatures.T).amax(1) > (drawn @ others.T).amax(1)).double().mean())


def unit(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features)


if __name__ == "__main__":
    main()
