"""Looks at pictures and captions before anything is learnt from them.

Errors are what nothing can be learnt from, and stop a run unless they may be left out; warnings are what a model would
learn and its owner may not want.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from safelight.errors import InvalidImage, InvalidRequest
from safelight.imaging.open_image import open_image
from safelight.lifecycle.training.sources import Example, Read

MAX_PIXELS, MAX_BYTES = 89_000_000, 256 * 2**20
ALIKE_BITS = 2
"""Pictures whose 64-bit hashes differ in no more bits look the same to people, as a rule."""
SHOWN = 3
Kind = Literal[
    "unreadable picture", "tiny picture", "missing caption", "empty caption", "missing mask", "same picture",
    "nearly the same picture", "nearly the same caption",
]  # fmt: skip
ERRORS: tuple[Kind, ...] = ("unreadable picture", "tiny picture", "missing caption", "missing mask")


@dataclass(frozen=True, slots=True)
class ExampleProblem:
    kind: Kind
    keys: tuple[str, ...]
    why: str = ""

    @property
    def is_error(self) -> bool:
        return self.kind in ERRORS


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedExample:
    """An example that can be opened."""

    example: Example
    size: tuple[int, int]
    sha256: str
    look: int
    """Its perceptual hash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    data: str
    num_examples: int
    good: tuple[CheckedExample, ...] = field(repr=False)
    """What can be learnt from."""
    faults: tuple[ExampleProblem, ...]
    digest: str
    """sha256 over the good ones: pictures, captions, masks."""

    @property
    def errors(self) -> list[ExampleProblem]:
        return [fault for fault in self.faults if fault.is_error]

    def lines(self) -> list[str]:
        """One for each kind of fault, with the first few names."""
        lines: list[str] = []
        for kind in dict.fromkeys(fault.kind for fault in self.faults):
            of_kind = [fault for fault in self.faults if fault.kind == kind]
            named = [" = ".join(fault.keys[:4]) + (f" ({fault.why})" if fault.why else "") for fault in of_kind]
            more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
            lines.append(f"{'error' if of_kind[0].is_error else 'warning'}: {kind}: {'; '.join(named[:SHOWN])}{more}")
        return lines

    def write(self, path: Path) -> None:
        about = {
            "data": self.data,
            "digest": self.digest,
            "examples": self.num_examples,
            "good": len(self.good),
            "faults": [asdict(fault) for fault in self.faults],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", "utf-8")


def check(
    examples: Sequence[Example],
    *,
    data: str,
    min_side: int = 64,
    needs_captions: bool = True,
    needs_masks: bool = False,
    tell: Callable[[int, int], None] = lambda _done, _total: None,
) -> DataReport:
    """Open every picture once."""
    good: list[CheckedExample] = []
    faults: list[ExampleProblem] = []
    total = hashlib.sha256()
    for number, example in enumerate(examples, 1):
        found = look_at(example, min_side=min_side, needs_captions=needs_captions, needs_mask=needs_masks)
        if isinstance(found, ExampleProblem):
            faults.append(found)
        else:
            if needs_captions and not example.caption:
                faults.append(ExampleProblem("empty caption", (example.key,)))
            mask = hashlib.sha256(example.read_mask()).hexdigest() if example.read_mask else ""
            said = [example.key, found.sha256, example.caption or "", mask]
            total.update(json.dumps(said, ensure_ascii=False).encode())
            good.append(found)
        tell(number, len(examples))
    faults += alike(good)
    if needs_captions:
        faults += said_alike(good)
    digest = total.hexdigest()
    return DataReport(data=data, num_examples=len(examples), good=tuple(good), faults=tuple(faults), digest=digest)


def look_at(
    example: Example, *, min_side: int, needs_captions: bool, needs_mask: bool
) -> CheckedExample | ExampleProblem:
    key = (example.key,)
    try:
        data = example.read()
        image = open_image(data, max_pixels=MAX_PIXELS, max_file_bytes=MAX_BYTES)
    except InvalidImage as error:
        return ExampleProblem("unreadable picture", key, str(error))
    except (OSError, ValueError) as error:
        return ExampleProblem("unreadable picture", key, f"{type(error).__name__}: {error}")
    if min(image.size) < min_side:
        return ExampleProblem("tiny picture", key, f"{image.width}x{image.height}, and at least {min_side} are wanted")
    if needs_captions and example.caption is None:
        return ExampleProblem("missing caption", key)
    if needs_mask and (why := mask_fault(example.read_mask)):
        return ExampleProblem("missing mask", key, why)
    return CheckedExample(example=example, size=image.size, sha256=hashlib.sha256(data).hexdigest(), look=look(image))


def mask_fault(read: Read | None) -> str:
    if read is None:
        return "there is no NAME.mask.png beside it"
    try:
        open_image(read(), max_pixels=MAX_PIXELS, max_file_bytes=MAX_BYTES)
    except (InvalidImage, OSError) as error:
        return str(error)
    return ""


def look(image: Image.Image) -> int:
    """dHash: in a 9x8 miniature, whether each pixel is brighter than its neighbour; 64 bits."""
    levels = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS), np.int16)
    bits = (levels[:, 1:] > levels[:, :-1]).flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def alike(good: Sequence[CheckedExample]) -> list[ExampleProblem]:
    """Groups of the same file, and pairs that look the same."""
    by_sum: dict[str, list[CheckedExample]] = defaultdict(list)
    for seen in good:
        by_sum[seen.sha256].append(seen)
    faults = [
        ExampleProblem("same picture", tuple(seen.example.key for seen in group))
        for group in by_sum.values()
        if len(group) > 1
    ]
    distinct = [group[0] for group in by_sum.values()]
    looks = np.array([seen.look for seen in distinct], np.uint64)
    for number, seen in enumerate(distinct):
        bits = np.bitwise_count(looks[number + 1 :] ^ looks[number])
        near = [distinct[number + 1 + int(place)].example.key for place in np.flatnonzero(bits <= ALIKE_BITS)]
        if near:
            faults.append(ExampleProblem("nearly the same picture", (seen.example.key, *near)))
    return faults


def said_alike(good: Sequence[CheckedExample]) -> list[ExampleProblem]:
    """Captions of the same words, whatever their order, case and commas."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for seen in good:
        if seen.example.caption:
            groups[tuple(sorted(re.findall(r"\w+", seen.example.caption.casefold())))].append(seen.example.key)
    return [ExampleProblem("nearly the same caption", tuple(keys)) for keys in groups.values() if len(keys) > 1]


def require_good(report: DataReport, *, skip_bad: bool) -> None:
    """Raises InvalidRequest where something cannot be learnt from and may not be left out, or nothing is left."""
    if report.errors and not skip_bad:
        said = "; ".join(line for line in report.lines() if line.startswith("error"))
        raise InvalidRequest(f"{report.data}: {said}; mend these, or leave them out with --skip-bad")
    if not report.good:
        raise InvalidRequest(f"{report.data}: nothing is left to learn from; {'; '.join(report.lines())}")
