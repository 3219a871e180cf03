"""What the watermark survives, what it costs in looks and time, and that unmarked pictures raise no alarm.

    python benchmarks/watermark.py --pictures FOLDER [FOLDER ...]         all pictures of these folders, as 512 px
    python benchmarks/watermark.py --pictures ... --draw 40 --peer FOLDER
    python benchmarks/watermark.py --pictures ... --calibrate             how high chance reaches, and nothing else

The pictures are not in this repository. Those of the committed results were shipped by Debian 12's packages
mate-backgrounds, plasma-workspace-wallpapers, ukui-wallpapers and gnome-backgrounds (photographs, abstract and drawn
wallpapers; the largest file of each picture), tuxpaint-stamps-default (photographs and drawings on white: 40 of at
least 220 px, drawn by lot from all but animals and seasonal) and fonts-noto-color-emoji (`apt-get download`).
What was tuned on were others: scikit-image's, the packages lomiri-wallpapers*, tuxpaint's animals and seasonal stamps,
and other drawings of the embedded model.

`--draw` has the embedded model draw so many pictures of 128 and of 256 px, and half as many of 512 (256, enlarged).
`--peer` is a folder with invisible-watermark (`pip install --no-deps --target FOLDER invisible-watermark
opencv-python-headless PyWavelets`), whose two methods without weights then get 64 bits into the same pictures.
"""

import argparse
import datetime
import hashlib
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from report import RESULTS, processor
from scipy.ndimage import gaussian_filter
from scipy.stats import gumbel_r

from safelight.trust.watermark.detect import LEAST_SIDE, MIN_Z, SIDE_STEP, SURE_Z, candidates, detect
from safelight.trust.watermark.embed import embed
from safelight.trust.watermark.keys import Keyring, WatermarkKey, asset_id
from safelight.trust.watermark.reading import MIN_Z_UNMOVED

SIDE = 512
WRONG_KEYS, FEW_WRONG_KEYS = 32, 4
"""A picture is asked for so many keys, unmarked and marked with another, by a plain search and by a full one."""
ENDINGS = {".png", ".jpg", ".jpeg", ".webp"}
PEERS_LEAST_PIXELS = 256 * 256
"""It refuses smaller pictures."""
EMOJI_FONT = Path("NotoColorEmoji.ttf")
EMOJI = "🦊🍎🚗🏠🌲🎸🚀🐢🍕🌻⛵🎁🦉🍄🚲🐙🍩🏰🦋🎈"

Picture = Image.Image
Result = TypeVar("Result")
Attack = Callable[[Picture], Picture]


def saved(kind: str, quality: int) -> Attack:
    def attack(picture: Picture) -> Picture:
        file = BytesIO()
        picture.save(file, kind, quality=quality)
        return Image.open(file).convert("RGB")

    return attack


def scaled(factor: float) -> Attack:
    return lambda picture: picture.resize((round(picture.width * factor), round(picture.height * factor)))


def cropped(share: float) -> Attack:
    """Take that share of both sides off, more of it at the top left."""

    def attack(picture: Picture) -> Picture:
        left, top = round(picture.width * share * 0.6), round(picture.height * share * 0.7)
        width, height = round(picture.width * (1 - share)), round(picture.height * (1 - share))
        return picture.crop((left, top, left + width, top + height))

    return attack


def screenshot(picture: Picture) -> Picture:
    return saved("JPEG", 80)(scaled(0.83)(cropped(0.04)(picture)))


def rotated(picture: Picture) -> Picture:
    return picture.rotate(1, Image.Resampling.BICUBIC, fillcolor="white")


# Name, attack, search, and the share that must be read.
ATTACKS: list[tuple[str, Attack, str, float]] = [
    ("none", lambda picture: picture, "plain", 0.97),
    ("JPEG 75", saved("JPEG", 75), "plain", 0.97),
    ("JPEG 50", saved("JPEG", 50), "plain", 0.95),
    ("JPEG 30", saved("JPEG", 30), "plain", 0),
    ("WebP 80", saved("WEBP", 80), "plain", 0.95),
    ("AVIF 60", saved("AVIF", 60), "plain", 0),
    ("brightness 1.3", lambda picture: ImageEnhance.Brightness(picture).enhance(1.3), "plain", 0.97),
    ("contrast 0.7", lambda picture: ImageEnhance.Contrast(picture).enhance(0.7), "plain", 0),
    ("mirrored", lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "plain", 0.95),
    ("half size", scaled(0.5), "plain", 0.95),
    ("quarter size", scaled(0.25), "full", 0),
    ("1.5 times larger", scaled(1.5), "plain", 0),
    ("crop 10 %", cropped(0.1), "full", 0.95),
    ("crop 25 %", cropped(0.25), "full", 0),
    ("screenshot: crop 4 %, x0.83, JPEG 80", screenshot, "full", 0.90),
    ("rotated by 1 degree", rotated, "full", 0),
]
ASKED = {name: least for name, _, _, least in ATTACKS}
ASKED_OF_SMALL = {"none": 0.98, "JPEG 75": 0.9} | dict.fromkeys(
    ("JPEG 50", "WebP 80", "brightness 1.3", "mirrored", "crop 10 %"), 0
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--pictures", type=Path, nargs="+", required=True)
    arguments.add_argument("--emoji", type=Path, help="a folder with NotoColorEmoji.ttf")
    arguments.add_argument("--draw", type=int, default=0)
    arguments.add_argument("--peer", type=Path)
    arguments.add_argument("--calibrate", action="store_true")
    arguments.add_argument("--limit", type=int, help="so many pictures only")
    given = arguments.parse_args()
    pictures = [fitted(opened(path)) for folder in given.pictures for path in sorted(found(folder))]
    pictures = [picture for picture in pictures if not is_blank(picture)]
    if given.emoji:
        pictures += list(emoji(given.emoji / EMOJI_FONT))
    drawn = {side: draw(given.draw, side) for side in (128, 256)} if given.draw else {}
    pictures += [fitted(picture) for picture in drawn.get(256, [])[: given.draw // 2]]
    random.Random(0).shuffle(pictures)
    pictures = pictures[: given.limit]

    if given.calibrate:
        calibrate(pictures)
        return
    lines = [f"## {len(pictures)} pictures, long side {SIDE} px", ""]
    lines += survival(pictures, ASKED)
    for side, small in drawn.items():
        lines += ["", f"## {len(small)} drawings of the embedded model, {side} px", ""]
        lines += survival(small, ASKED_OF_SMALL)
    lines += ["", "## False alarms", "", *alarms(pictures)]
    if given.peer:
        sys.path.append(str(given.peer))
        lines += ["", "## Beside invisible-watermark 0.2.0, 64 bits, in turn", "", *peer(pictures)]
    finish(lines)


def found(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)


def opened(path: Path) -> Picture:
    picture = Image.open(path).convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    return ground.convert("RGB")


def is_blank(picture: Picture) -> bool:
    """White only: some wallpapers are white lines, transparent elsewhere."""
    darkest, _ = picture.convert("L").getextrema()
    return darkest >= 240


def fitted(picture: Picture) -> Picture:
    scale = SIDE / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def emoji(font: Path) -> Iterator[Picture]:
    for sign in EMOJI:
        picture = Image.new("RGB", (160, 160), "white")
        ImageDraw.Draw(picture).text((12, 16), sign, font=ImageFont.truetype(font, 109), embedded_color=True)
        yield fitted(picture)


def draw(count: int, side: int) -> list[Picture]:
    import safelight

    things = (
        "anchor banana cactus donut elephant flamingo ghost hammer igloo jellyfish koala lobster mushroom narwhal "
        "onion panda queen rabbit snail tomato"
    ).split()
    colours = ("red", "blue", "green", "yellow", "purple")
    prompts = [f"a {colours[i % 5]} {things[i % len(things)]}" for i in range(count)]
    return [
        safelight.generate(prompt, seed=9000 + seed, steps=8, width=side, height=side)[0].image
        for seed, prompt in enumerate(prompts)
    ]


def key(number: int) -> WatermarkKey:
    return WatermarkKey(secret=hashlib.sha256(b"benchmark %d" % number).digest())


def survival(pictures: list[Picture], asked: dict[str, float]) -> list[str]:
    """Mark each picture, damage it in each way, and count the exact 64 bits."""
    read = dict.fromkeys(asked, 0)
    outcomes, ssims, psnrs = [], [], []
    times: dict[str, list[float]] = {"embed": [], "plain": [], "full": []}
    for number, picture in enumerate(pictures):
        ring = Keyring(keys=(key(number % 7),))
        asset = asset_id(ring.current, f"{number}")
        detect(picture, ring)  # the key's pattern is made once a process
        marked, outcome = timed(times["embed"], embed, picture, ring.current, asset)
        outcomes.append(outcome.status)
        psnrs.append(psnr_db(picture, marked))
        ssims.append(ssim(picture, marked))
        for name, attack, search, _ in ATTACKS:
            if name in read:
                damaged = attack(marked)
                took: list[float] = []
                found = timed(took, detect, damaged, ring, search=search)
                times[found.search] += took
                read[name] += found.found and found.asset == asset
        print(f"{number + 1}/{len(pictures)}", end="\r", flush=True)
    count = len(pictures)
    lines = ["| attack | search | all 64 bits read | 95 % bounds (Wilson) | asked |", "|---|---|---|---|---|"]
    for name, _, search, _ in ATTACKS:
        if name in read:
            least = asked[name]
            low, high = wilson(read[name], count)
            share = f"{read[name]}/{count} = {read[name] / count:.1%}"
            lines.append(
                f"| {name} | {search} | {share} | {low:.1%} to {high:.1%} | {f'{least:.0%}' if least else ''} |"
            )
    told = ", ".join(f"{outcomes.count(status)} {status}" for status in ("marked", "weak", "unmarked"))
    lines += [
        "",
        f"Outcomes: {told}.",
        f"PSNR median {statistics.median(psnrs):.1f} dB, least {min(psnrs):.1f}; "
        f"SSIM median {statistics.median(ssims):.4f}, least {min(ssims):.4f}.",
        "CPU time, milliseconds, median and longest: "
        + ", ".join(f"{what} {statistics.median(ms):.0f}, {max(ms):.0f}" for what, ms in times.items() if ms)
        + ".",
    ]
    print("\n".join(lines), flush=True)
    return lines


def timed(into: list[float], call: Callable[..., Result], *arguments: object, **named: object) -> Result:
    began = time.process_time()
    result = call(*arguments, **named)
    into.append((time.process_time() - began) * 1e3)
    return result


def wilson(successes: int, count: int, deviations: float = 1.96) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927)."""
    share, square = successes / count, deviations**2
    middle = share + square / (2 * count)
    half = deviations * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return max(0.0, (middle - half) / (1 + square / count)), (middle + half) / (1 + square / count)


def psnr_db(one: Picture, other: Picture) -> float:
    difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    return float(10 * np.log10(255**2 / max(float(np.mean(difference**2)), 1e-9)))


def ssim(one: Picture, other: Picture) -> float:
    """Wang et al. 2004, of the brightness; apart from the product's own, which looks at every fourth pixel."""

    def smooth(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, truncate=3.5)

    a, b = (np.asarray(picture.convert("L"), np.float64) for picture in (one, other))
    mean_a, mean_b = smooth(a), smooth(b)
    variance_a, variance_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    c1, c2 = 2.55**2, 7.65**2
    alike = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float(np.mean(alike / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))))


def alarms(pictures: list[Picture]) -> list[str]:
    """Ask each picture, unmarked and marked with another key, for keys that never touched it."""
    counts = {"plain": WRONG_KEYS, "full": FEW_WRONG_KEYS}
    false, highest = dict.fromkeys(counts, 0), dict.fromkeys(counts, 0.0)
    for number, picture in enumerate(pictures):
        marked, _ = embed(picture, key(0), "0123456789abcdef")
        for asked in (picture, marked):
            for search, count in counts.items():
                detection = detect(asked, wrong_keys(number, count), search=search)
                false[search] += detection.found
                highest[search] = max(highest[search], detection.z)
        print(f"alarms {number + 1}/{len(pictures)}", end="\r", flush=True)
    lines = [
        f"{search}: {false[search]} in {2 * len(pictures) * count} reads, each of a picture for a wrong key, half of "
        f"them of pictures marked with another; highest z {highest[search]:.2f}."
        for search, count in counts.items()
    ]
    print("\n".join(lines), flush=True)
    return lines


def wrong_keys(number: int, count: int) -> Keyring:
    return Keyring(keys=tuple(key(1000 + WRONG_KEYS * number + index) for index in range(count)))


def calibrate(pictures: list[Picture]) -> None:
    """Print how well wrong keys fit at best, and a Gumbel distribution of it."""
    own = [float(SIDE)]
    for search, sides in (("plain", own), ("full", [float(side) for side in range(LEAST_SIDE, SIDE + 1, SIDE_STEP)])):
        best: list[float] = []
        unmoved: list[float] = []
        for number, picture in enumerate(pictures):
            ring = wrong_keys(number, WRONG_KEYS)
            asked = embed(picture, key(0), "0123456789abcdef")[0] if number % 2 else picture
            tried = list(candidates(asked, ring, sides))
            for one in ring.keys:
                of_key = [candidate for candidate in tried if candidate.place.key == one]
                best.append(max(candidate.z for candidate in of_key if not candidate.is_unmoved))
                unmoved.append(max(candidate.z for candidate in of_key if candidate.is_unmoved))
        location, scale = gumbel_r.fit(best)
        print(
            f"{search}: {len(best)} reads, mean z {statistics.mean(best):.2f}, highest {max(best):.2f}; Gumbel "
            f"{location:.3f}, {scale:.3f}; z of 1e-6 {gumbel_r.isf(1e-6, location, scale):.2f}; "
            f"z >= {SURE_Z:g} {gumbel_r.sf(SURE_Z, location, scale):.1e}, z >= {MIN_Z:g} "
            f"{gumbel_r.sf(MIN_Z, location, scale):.1e}; unmoved z >= {MIN_Z_UNMOVED:g} in "
            f"{statistics.mean(z >= MIN_Z_UNMOVED for z in unmoved):.2%}, highest {max(unmoved):.2f}",
            flush=True,
        )


def peer(pictures: list[Picture]) -> list[str]:
    """invisible-watermark's dwtDct and dwtDctSvd, told the length of what they read, and ours."""
    from imwatermark import WatermarkDecoder, WatermarkEncoder

    pictures = [picture for picture in pictures if picture.width * picture.height >= PEERS_LEAST_PIXELS]
    names = [name for name, _, _, least in ATTACKS if least]
    lines = [f"{len(pictures)} pictures.", "", "| attack | dwtDct | dwtDctSvd | ours |", "|---|---|---|---|"]
    methods = ("dwtDct", "dwtDctSvd", "ours")
    read = {method: dict.fromkeys(names, 0) for method in methods}
    psnrs: dict[str, list[float]] = {method: [] for method in methods}
    times: dict[str, list[float]] = {method: [] for method in methods}
    for number, picture in enumerate(pictures):
        ring = Keyring(keys=(key(number % 7),))
        asset = asset_id(ring.current, f"{number}")
        for method in methods:
            if method == "ours":
                marked, _ = timed(times[method], embed, picture, ring.current, asset)
            else:
                encoder = WatermarkEncoder()
                encoder.set_watermark("bytes", bytes.fromhex(asset))
                blue_first = np.asarray(picture)[..., ::-1].copy()
                array = timed(times[method], encoder.encode, blue_first, method)
                marked = Image.fromarray(np.clip(array, 0, 255).astype(np.uint8)[..., ::-1].copy())
            psnrs[method].append(psnr_db(picture, marked))
            for name, attack, search, least in ATTACKS:
                if not least:
                    continue
                damaged = attack(marked)
                if method == "ours":
                    read[method][name] += detect(damaged, ring, search=search).asset == asset
                elif damaged.width * damaged.height >= PEERS_LEAST_PIXELS:
                    decoder = WatermarkDecoder("bytes", 64)
                    said = decoder.decode(np.asarray(damaged)[..., ::-1].copy(), method)
                    read[method][name] += said == bytes.fromhex(asset)
    rows = {name: [f"{read[method][name]}/{len(pictures)}" for method in methods] for name in names}
    rows["PSNR, median"] = [f"{statistics.median(psnrs[method]):.1f} dB" for method in methods]
    rows["embedding, CPU, median"] = [f"{statistics.median(times[method]):.0f} ms" for method in methods]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    print("\n".join(lines), flush=True)
    return lines


def finish(lines: list[str]) -> None:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    text = "\n".join(
        [
            "# Watermark: what it survives",
            "",
            f"{today}, {processor()}, {os.cpu_count()} cores, one thread,",
            f"Pillow {Image.__version__}, numpy {np.__version__}. Command: `python {' '.join(sys.argv)}`;",
            "the first lines of that file name the pictures.",
            "The machine was shared: read times as upper bounds.",
            "",
            *lines,
            "",
        ]
    )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"watermark_x86_64-{os.cpu_count()}cores_{today}.md"
    path.write_text(text)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
