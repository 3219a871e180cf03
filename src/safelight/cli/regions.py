"""`--region` of `safelight generate`: an area and its prompt, in one line."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.cli.kept import kept
from safelight.errors import InvalidRequest

if TYPE_CHECKING:
    from safelight.settings import Settings

REGION_FORM = "AREA[@SHARE]:PROMPT"
HALVES = {
    "left": (0.0, 0.0, 0.5, 1.0),
    "right": (0.5, 0.0, 1.0, 1.0),
    "top": (0.0, 0.0, 1.0, 0.5),
    "bottom": (0.0, 0.5, 1.0, 1.0),
}
BOX = re.compile(r"[\d.]+(?:,[\d.]+){3}")
FORM = re.compile(r"(?P<area>[^:]+?|[A-Za-z]:[^:]+?)(?:@(?P<share>[\d.]+))?:(?P<prompt>.*)", re.DOTALL)


def region_requests(texts: Sequence[str], settings: "Settings") -> list[dict[str, Any]]:
    """Fields of `spec.Region`; masks are stored."""
    return [region_request(text, settings) for text in texts]


def region_request(text: str, settings: "Settings") -> dict[str, Any]:
    """`left:a red apple`, `0.5,0,1,1@0.6:a blue cup` or `mask.png:a cat`."""
    found = FORM.fullmatch(text)
    if not found or not found["prompt"].strip():
        raise InvalidRequest(f"--region is {REGION_FORM}, such as left:a red apple, not {text!r}")
    request: dict[str, Any] = {"prompt": found["prompt"].strip()}
    if found["share"] is not None:
        request["weight"] = found["share"]
    area = found["area"].strip()
    if area in HALVES:
        return {**request, "box": HALVES[area]}
    if BOX.fullmatch(area):
        return {**request, "box": area.split(",")}
    if not Path(area).is_file():
        areas = f"{', '.join(HALVES)}, four fractions such as 0,0,0.5,1, or the file of a mask"
        raise InvalidRequest(f"--region: {area!r} is no area; areas are {areas}")
    return {**request, "mask": kept(Path(area), settings)}
