"""Render openly licensed emoji artwork from npm packages, with the attributes of each picture.

    fetch_packages -> read_concepts -> choose_combinations -> render -> pictures.npy + pictures.json

A picture is a (concept, style, colour) combination. Its colour is either the artwork's own or that of
a recoloured copy. A few fixed combinations are held out: holdout.json lists them, and no training uses them.
"""

import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

from safelight.errors import SafelightError
from safelight.lifecycle.mini.captions import Aliases, read_aliases
from safelight.lifecycle.mini.mini import ArtworkRecipe

Rgba = NDArray[np.uint8]
"""One picture: height, width, 4; alpha not premultiplied."""

HUES = {"red": 0, "orange": 28, "yellow": 50, "green": 125, "blue": 215, "purple": 275, "pink": 325}
"""Hue in degrees of each colour word."""

NOT_PICTURES = re.compile(
    r"^(man|woman|men|women|mx|deaf|couple|family|kiss:)\b.+|.*(: |facing |o’clock|-thirty|japanese “|keycap|"
    r"skin tone|button|arrow|gesturing|pushing hand|wards hand|medium square|small square|small-square|"
    r"small (orange|blue)|sign$|on!).*"
)
NOT_GROUPS = {"component", "flags"}
NOT_SUBGROUPS = {"alphanum", "keycap", "zodiac", "family", "gender", "av-symbol", "transport-sign"}


@dataclass(frozen=True, slots=True)
class Concept:
    """One concept: its slug, emojibase label, keywords, and whether it is one of the popular ones."""

    slug: str
    label: str
    keywords: tuple[str, ...]
    core: bool


@dataclass(frozen=True, slots=True)
class ArtworkPicture:
    """One rendered picture; `own_colour`: the artist chose the colour, not the recolouring."""

    concept: str
    style: str
    colour: str
    own_colour: bool

    @property
    def key(self) -> str:
        return f"{self.concept}/{self.style}/{self.colour if not self.own_colour else 'own'}"


def build_artwork(recipe: ArtworkRecipe, folder: Path) -> None:
    """Fetch, choose and render everything the captions and the autoencoder need, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    packages = {name: fetch_package(package, folder / "packages") for name, package in recipe.packages.items()}
    keywords = fetch_package(recipe.keywords_package, folder / "packages")
    icons = {style: json.loads((package / "icons.json").read_text("utf-8")) for style, package in packages.items()}
    concepts = read_concepts(keywords, icons, read_aliases())
    pictures: list[ArtworkPicture] = []
    rendered: list[Rgba] = []
    for concept in concepts:
        for style, icon_set in icons.items():
            picture = render(svg_of(icon_set, concept.slug), recipe.size)
            if picture is None:
                continue
            own, share = dominant_colour(picture)
            pictures.append(ArtworkPicture(concept.slug, style, own, own_colour=True))
            rendered.append(picture)
            num_copies = recipe.core_copies if concept.core else recipe.other_copies
            for colour in copy_colours(concept.slug, own, num_copies) if share > recipe.min_colour_share else ():
                pictures.append(ArtworkPicture(concept.slug, style, colour, own_colour=False))
                rendered.append(recolour(picture, colour))
    np.save(folder / "pictures.tmp.npy", np.stack(rendered))
    (folder / "pictures.tmp.npy").rename(folder / "pictures.npy")
    write_json(folder / "concepts.json", [asdict(concept) for concept in concepts])
    write_json(folder / "pictures.json", [asdict(picture) | {"key": picture.key} for picture in pictures])
    write_json(folder / "holdout.json", sorted(hold_out(pictures, recipe.holdout_share)))
    write_json(folder / "sources.json", [source_of(path) for path in (*packages.values(), keywords)])


def fetch_package(name: str, folder: Path) -> Path:
    """Download one npm package with `npm pack`, unpack its JSON files, and return their folder."""
    target = folder / name.replace("/", "-").lstrip("@")
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(["npm", "pack", name, "--silent"], cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise SafelightError("the artwork comes from npm, which is not on this machine: install Node.js") from None
    except subprocess.CalledProcessError as error:
        raise SafelightError(f"npm cannot fetch {name}: {error.stderr.strip()[-300:]}") from None
    packed = done.stdout.split()[-1]
    partial = target.with_suffix(".partial")
    with tarfile.open(folder / packed) as archive:
        archive.extractall(partial, filter="data")
    (partial / "package").rename(target)
    return target


def source_of(package: Path) -> dict[str, str]:
    """Name, version, licence and author of a package, for LICENSES.md."""
    about: dict[str, Any] = json.loads((package / "package.json").read_text("utf-8"))
    info = package / "info.json"
    upstream: dict[str, Any] = json.loads(info.read_text("utf-8")) if info.exists() else {}
    return {
        "package": about["name"],
        "version": about["version"],
        "licence": upstream.get("license", {}).get("spdx", about.get("license", "")),
        "author": upstream.get("author", {}).get("name", str(about.get("author", ""))),
        "url": upstream.get("author", {}).get("url", str(about.get("homepage", ""))),
    }


def read_concepts(keywords: Path, icons: dict[str, dict[str, Any]], aliases: Aliases) -> list[Concept]:
    """Every emojibase entry that depicts something and exists in all styles."""
    groups: dict[str, Any] = json.loads((keywords / "meta/groups.json").read_text("utf-8"))
    concepts: list[Concept] = []
    for entry in json.loads((keywords / "en/data.json").read_text("utf-8")):
        label, slug = entry["label"], slug_of(entry["label"])
        if "group" not in entry or groups["groups"][str(entry["group"])] in NOT_GROUPS:
            continue
        subgroup = groups["subgroups"][str(entry["subgroup"])]
        chosen = label in aliases.names or not (subgroup in NOT_SUBGROUPS or NOT_PICTURES.match(label.lower()))
        if chosen and all(slug in icon_set["icons"] or slug in icon_set["aliases"] for icon_set in icons.values()):
            tags = tuple(tag for tag in entry.get("tags", []) if re.fullmatch(r"[a-z][a-z \-]{2,}", tag))
            concepts.append(Concept(slug, label, tags, core=label in aliases.core))
    return concepts


def slug_of(label: str) -> str:
    """The icon sets' file name for an emojibase label."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"[’'“”]", "", label.lower())).strip("-")


def svg_of(icon_set: dict[str, Any], slug: str) -> str:
    """One icon as an SVG document."""
    while slug in icon_set["aliases"]:
        slug = icon_set["aliases"][slug]["parent"]
    icon = icon_set["icons"][slug]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = icon.get("width", icon_set.get("width", 16)), icon.get("height", icon_set.get("height", 16))
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    # A square document around a box of any shape: the drawing is centred in it.
    return f'<svg {spaces} width="64" height="64" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'


def render(svg: str, size: int) -> Rgba | None:
    """The drawing at `size`, area-averaged from twice that; None if it is empty."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * size, height=2 * size, skip_system_fonts=True)
    fine = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"), np.float32) / 255
    premultiplied = np.concatenate([fine[..., :3] * fine[..., 3:], fine[..., 3:]], axis=-1)
    coarse = premultiplied.reshape(size, 2, size, 2, 4).mean(axis=(1, 3))
    alpha = coarse[..., 3:]
    if alpha.mean() < 0.01:
        return None
    colour = coarse[..., :3] / np.maximum(alpha, 1e-6)
    return np.round(np.concatenate([colour, alpha], axis=-1).clip(0, 1) * 255).astype(np.uint8)


def to_hsv(picture: Rgba) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Hue in degrees, saturation and value in 0..1, per pixel."""
    hsv = np.asarray(Image.fromarray(picture[..., :3]).convert("HSV"), np.float32)
    return hsv[..., 0] * (360 / 255), hsv[..., 1] / 255, hsv[..., 2] / 255


def dominant_colour(picture: Rgba) -> tuple[str, float]:
    """The colour word for most of the drawn area, and the share of the drawn area that it names."""
    hue, saturation, value = to_hsv(picture)
    alpha = picture[..., 3] / 255
    names = np.full(hue.shape, "", dtype="<U6")
    centres = np.array([*HUES.values(), 360])
    words = np.array([*HUES, "red"])
    names[:] = words[np.abs(hue[..., None] - centres).argmin(-1)]
    names[np.isin(names, ["orange", "yellow", "red"]) & (hue > 8) & (hue < 48) & (value < 0.62)] = "brown"
    names[saturation < 0.18] = "gray"
    names[(saturation < 0.12) & (value > 0.88)] = "white"
    names[value < 0.25] = "black"
    totals = {str(name): float(alpha[names == name].sum()) for name in np.unique(names)}
    best = max(totals, key=lambda name: totals[name])
    return best, totals[best] / float(alpha.sum())


def recolour(picture: Rgba, colour: str) -> Rgba:
    """A copy with its main hue rotated to `colour`; other hues (a leaf, a tongue) do not change."""
    hue, saturation, value = to_hsv(picture)
    weight = saturation * value * (picture[..., 3] / 255)
    angles = np.deg2rad(hue)
    main = np.rad2deg(np.arctan2((weight * np.sin(angles)).sum(), (weight * np.cos(angles)).sum()))
    distance = np.abs((hue - main + 180) % 360 - 180)
    # Fades out between 40 and 65 degrees, so that gradients have no seam.
    share = ((65 - distance) / 25).clip(0, 1)
    if colour == "black":
        saturation, value = saturation * (1 - 0.85 * share), value * (1 - 0.72 * share)
    elif colour == "brown":
        hue, saturation, value = (
            hue + share * turn(main, 22),
            saturation * (1 - 0.2 * share),
            value * (1 - 0.45 * share),
        )
    else:
        hue = hue + share * turn(main, HUES[colour])
    hsv = np.stack([hue % 360 * (255 / 360), saturation * 255, value * 255], axis=-1).round().astype(np.uint8)
    rgb = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    return np.concatenate([rgb, picture[..., 3:]], axis=-1)


def turn(start: float, end: float) -> float:
    """The shorter way round the colour wheel, in degrees."""
    return float((end - start + 180) % 360 - 180)


def copy_colours(slug: str, own: str, count: int) -> Iterable[str]:
    """Colours for the copies of one concept: the same in every style, different between concepts."""
    if own in ("white", "gray", "black"):
        return ()
    others = [colour for colour in (*HUES, "black", "brown") if colour != own]
    return sorted(others, key=lambda colour: fraction_of(f"{slug}:{colour}"))[:count]


def hold_out(pictures: list[ArtworkPicture], share: float) -> set[str]:
    """Keys of the combinations never trained on; every concept keeps at least two styles of its own colour."""
    keys = set[str]()
    for picture in pictures:
        if picture.own_colour:
            styles = sorted({other.style for other in pictures if other.concept == picture.concept})
            chosen = styles[int(fraction_of(f"style:{picture.concept}") * len(styles))]
            held = len(styles) > 2 and picture.style == chosen and fraction_of(f"own:{picture.concept}") < 3 * share
        else:
            held = fraction_of(f"hold:{picture.key}") < 2 * share
        if held:
            keys.add(picture.key)
    return keys


def fraction_of(text: str) -> float:
    """A pseudo-random number in 0..1 that depends only on the text: the same on every machine and run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def write_json(path: Path, value: object) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
    partial.rename(path)
