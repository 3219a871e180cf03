"""What fine-tuning does to the embedded model, in a few minutes on a CPU: before and after, in pictures and numbers.

    style      a LoRA of an icon set that mini never saw (OpenMoji, CC BY-SA 4.0, from npm), on things kept out of it
    object     DreamBooth of an invented creature, from five renderings, on backgrounds that they do not have
    word       the same creature as a textual inversion: two vectors

Writes one grid each into docs/images. Fixed prompts and seeds, nothing picked.
"""

import json
import random
import sys
import tempfile
from collections.abc import Sequence
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
from safelight.training.sampling import GRID
from safelight.training.train import train

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PACKAGE = "@iconify-json/openmoji@1.2.29"
KEPT_OUT = 64
"""Things that the run does not see, beside those that are drawn."""
BACKGROUNDS = ("white", "#e8c24a", "#7cc47f", "#8fb8e8", "#d8a0d0")
CONTEXTS = ("", " on a red background", " on a blue background", " on a black background")


def main() -> None:
    torch.set_num_threads(1)
    judge = open_judge()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder) / "home", device="cpu")
        with open_studio(settings) as studio:
            for show in (show_style, show_object, show_word):
                if len(sys.argv) < 2 or show.__name__.removeprefix("show_") in sys.argv[1:]:
                    show(Path(folder), settings, studio, judge)


def show_style(folder: Path, settings: Settings, studio: Studio, judge: Judge) -> None:
    icons = json.loads((fetch_package(PACKAGE, folder / "npm") / "icons.json").read_text("utf-8"))
    asked = [prompt.replace("red ", "").replace("blue ", "").replace("green ", "") for prompt in GRID]
    known = [name for name in judge.classes["concept"] if name in icons["icons"]]
    random.Random(0).shuffle(known)
    kept_out = {name.replace(" ", "-") for name in asked} | set(known[:KEPT_OUT])
    drawn = {name: picture for name in known if (picture := rendered(icons, name)) is not None}
    data = folder / "style"
    data.mkdir()
    for name in [name for name in drawn if name not in kept_out]:
        drawn[name].save(data / f"{name}.png")
        (data / f"{name}.txt").write_text(name.replace("-", " "))
    learn(settings, "lora", "outline", data, steps=500, batch=8, rank=16, rate=7e-4, cooldown=0.5, caption_dropout=0.1)
    # The style has no word: it is what the LoRA does. Prompts are the same before and after.
    before, after = draw(studio, asked), draw(studio, asked, lora="outline")
    paste([before, after]).save(IMAGES / "lora-style.png")
    real = judge.features([drawn[name] for name in drawn if name in kept_out])
    for what, pictures in (("before", before), ("after", after)):
        distance = kernel_distance(judge.features(pictures), real)
        right = named(judge, pictures, asked)
        print(f"style, {what}: distance to {len(real)} real ones kept out {distance:.0f}, named among five {right}")


def rendered(icons: Any, name: str) -> Image.Image | None:
    pixels = render(svg_of(icons, name), 128)
    return None if pixels is None else over_white(pixels)


def named(judge: Judge, pictures: Sequence[Image.Image], asked: Sequence[str]) -> str:
    ranked = judge.rank(pictures, "concept")
    places = [(order, name.replace(" ", "-")) for order, name in zip(ranked, asked, strict=True)]
    known = [(order, name) for order, name in places if name in order]
    return f"{sum(name in order[:5] for order, name in known)} of {len(known)}"


def show_object(folder: Path, settings: Settings, studio: Studio, judge: Judge) -> None:
    data = creatures(folder / "object")
    said = {"prompt": "a sks robot", "class_prompt": "a robot", "class_pictures": 16}
    learn(settings, "dreambooth", "creature", data, steps=200, batch=4, rank=16, rate=1e-3, cooldown=0.3, **said)
    prompts = [f"a sks robot{context}" for context in CONTEXTS]
    before, after = draw(studio, prompts, seeds=2), draw(studio, prompts, seeds=2, lora="creature")
    others = draw(studio, ["a robot"], seeds=4), draw(studio, ["a robot"], seeds=4, lora="creature")
    paste([before, after]).save(IMAGES / "dreambooth.png")
    compare(judge, data, "object", before, after)
    print(f"class: {likeness(judge, data, others[0]):.3f} before, {likeness(judge, data, others[1]):.3f} after")


def show_word(folder: Path, settings: Settings, studio: Studio, judge: Judge) -> None:
    data = creatures(folder / "word")
    learn(settings, "embedding", "creature-word", data, steps=250, batch=4, vectors=2, init="robot", rate=1e-2)
    before = draw(studio, [f"a robot{context}" for context in CONTEXTS], seeds=2)
    after = draw(studio, [f"a creature-word{context}" for context in CONTEXTS], seeds=2)
    paste([before, after]).save(IMAGES / "textual-inversion.png")
    compare(judge, data, "word", before, after)


def learn(settings: Settings, kind: str, name: str, data: Path, **wishes: Any) -> None:
    recipe = parse_recipe({"kind": kind, "name": name, "data": str(data), "tracker": "none"} | wishes)
    for news in train(recipe, settings):
        if isinstance(news, Trained) and news.step % 100 == 0:
            print(f"{name}: step {news.step} of {news.total_steps}, loss {news.loss:.3f}", flush=True)


def draw(studio: Studio, prompts: Sequence[str], *, seeds: int = 1, lora: str | None = None) -> list[Image.Image]:
    loras = (LoraWish(name=lora),) if lora else ()
    drafts = [Draft(prompt=prompt, seed=seed, loras=loras) for prompt in prompts for seed in range(seeds)]
    return [one.image for one in unwrapped(draw_all(drafts, studio))]


def creatures(folder: Path) -> Path:
    """Five renderings of a creature that is not in any emoji set: teal, one eye, orange stripes, three legs."""
    folder.mkdir()
    for number, background in enumerate(BACKGROUNDS):
        large = Image.new("RGB", (512, 512), background)
        pen = ImageDraw.Draw(large)
        for x in (170, 245, 320):
            pen.rounded_rectangle((x, 370, x + 40, 450), 16, fill="#0b5f63")
        pen.ellipse((110, 90, 410, 410), fill="#149aa0")
        for y in (270, 315, 355):
            pen.rounded_rectangle((150 + (y - 270) // 4, y, 370 - (y - 270) // 4, y + 20), 10, fill="#f28c28")
        pen.ellipse((195, 130, 325, 250), fill="white")
        pen.ellipse((235 + 6 * number, 160, 295 + 6 * number, 220), fill="#222222")
        turned = large.rotate(8 * (number - 2), Image.Resampling.BICUBIC, fillcolor=background)
        margin = 10 * number
        turned.crop((margin, margin, 512 - margin, 512 - margin)).resize((128, 128)).save(folder / f"{number}.png")
    return folder


def shrunk(data: Path) -> list[Image.Image]:
    return [Image.open(path) for path in sorted(data.glob("*.png"))]


def compare(judge: Judge, data: Path, what: str, before: Sequence[Image.Image], after: Sequence[Image.Image]) -> None:
    print(f"{what}: likeness {likeness(judge, data, before):.3f} before, {likeness(judge, data, after):.3f} after")


def likeness(judge: Judge, data: Path, pictures: Sequence[Image.Image]) -> float:
    """Mean cosine of the judge's features, to the nearest rendering."""
    real, drawn = (torch.nn.functional.normalize(judge.features(part)) for part in (shrunk(data), list(pictures)))
    return float((drawn @ real.T).amax(dim=1).mean())


if __name__ == "__main__":
    main()
