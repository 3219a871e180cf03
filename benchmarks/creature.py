"""An invented object for DreamBooth and textual inversion, and a test of whether a picture shows it.

The object is a purple fruit with an orange leaf and a round window, in five renderings on white for training. The test
separates it from pictures that share only its colours or only its shape.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from safelight.lifecycle.evaluation.judge import Judge

RENDERINGS = 5
SIDE = 128
BACKGROUNDS = ("white", "#ff4f1f", "#2a9fe8", "#202020")
"""The colours that mini draws for its background words: none, red, blue, black."""
WARPS = 20
"""Number of decoys of each kind on each background."""


def creatures(folder: Path) -> Path:
    """Write the training renderings into the folder."""
    folder.mkdir()
    for pose in range(RENDERINGS):
        creature(pose).save(folder / f"{pose}.png")
    return folder


def creature(pose: int, background: str = "white") -> Image.Image:
    """One rendering; each pose is rotated a little further, and closer."""
    large = Image.new("RGB", (512, 512), background)
    pen = ImageDraw.Draw(large)
    pen.rounded_rectangle((246, 70, 272, 170), 12, fill="#5b3a1e")
    pen.ellipse((268, 40, 400, 120), fill="#ff8a1f")
    for box in ((66, 130, 306, 420), (206, 130, 446, 420), (110, 190, 402, 480)):
        pen.ellipse(box, fill="#8f35dd")
    pen.ellipse((176, 220, 336, 380), fill="white")
    turned = large.rotate(3 * (pose - 2), Image.Resampling.BICUBIC, fillcolor=background)
    margin = 4 * pose
    return turned.crop((margin, margin, 512 - margin, 512 - margin)).resize((SIDE, SIDE))


def recognised(judge: Judge, pictures: Sequence[Image.Image], others: Sequence[Image.Image] = ()) -> float:
    """Share of pictures more similar to the object than to any decoy or any of `others`, in the judge's features."""
    return nearer(judge, pictures, [*decoys(), *others])


def nearer(judge: Judge, pictures: Sequence[Image.Image], others: Sequence[Image.Image]) -> float:
    """Share of pictures more similar to the object than to any of `others`, in the judge's features."""
    own = [creature(pose, background) for pose in range(RENDERINGS) for background in BACKGROUNDS]
    drawn, real, false = (F.normalize(judge.features(part)) for part in (pictures, own, others))
    return float(((drawn @ real.T).amax(1) > (drawn @ false.T).amax(1)).double().mean())


def decoys() -> list[Image.Image]:
    """Its colours in other shapes (warped, cut into squares and shuffled, upside down), and its shape in other
    colours."""
    made: list[Image.Image] = []
    for background in BACKGROUNDS:
        for number in range(WARPS):
            pose = creature(number % RENDERINGS, background)
            made += [warped(pose, seed=number), shuffled(pose, seed=number)]
        upright = creature(2, background)
        made += [upright.rotate(180), *(rehued(2, background, turn) for turn in (64, 128, 192))]
    return made


def warped(picture: Image.Image, *, seed: int) -> Image.Image:
    """The picture under a smooth random warp."""
    generator = torch.Generator().manual_seed(seed)
    pulls = 0.35 * torch.randn(1, 2, 5, 5, generator=generator)
    smooth = F.interpolate(pulls, SIDE, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    places = F.affine_grid(torch.eye(2, 3)[None], list(pixels.shape), align_corners=False) + smooth
    moved = F.grid_sample(pixels, places, padding_mode="border", align_corners=False)[0]
    return Image.fromarray(moved.round().byte().permute(1, 2, 0).numpy())


def shuffled(picture: Image.Image, *, seed: int) -> Image.Image:
    side = SIDE // 4
    corners = [(x, y) for y in range(0, SIDE, side) for x in range(0, SIDE, side)]
    tiles = [picture.crop((x, y, x + side, y + side)) for x, y in corners]
    random.Random(seed).shuffle(tiles)
    sheet = Image.new("RGB", (SIDE, SIDE))
    for corner, tile in zip(corners, tiles, strict=True):
        sheet.paste(tile, corner)
    return sheet


def rehued(pose: int, background: str, turn: int) -> Image.Image:
    """The object in other colours on the same background; `turn` is the shift of the hue, out of 256."""
    plain = creature(pose, background)
    hue, saturation, value = plain.convert("HSV").split()
    other = Image.merge("HSV", (hue.point([(level + turn) % 256 for level in range(256)]), saturation, value)).convert(
        "RGB"
    )
    # The area of the object, on any background.
    behind = np.array(creature(pose, "#00ff00")) == np.array([0, 255, 0])
    return Image.composite(plain, other, Image.fromarray(behind.all(-1).astype(np.uint8) * 255))
