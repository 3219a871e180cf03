"""Check pictures and captions before training.

Errors are examples that cannot be trained on; they stop a run unless they may be skipped. Warnings are examples that
can be, but probably should not.
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
MAX_DUPLICATE_BITS = 2
"""Pictures whose 64-bit perceptual hashes differ in no more bits usually look the same to people."""
MAX_NAMES = 3
"""Names listed for each kind of problem."""
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
    perceptual_hash: int
    """64 bits, by `dhash`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    data: str
    num_examples: int
    good: tuple[CheckedExample, ...] = field(repr=False)
    """The examples that can be trained on."""
    problems: tuple[ExampleProblem, ...]
    digest: str
    """sha256 over the good examples: pictures, captions, masks."""

    @property
    def errors(self) -> list[ExampleProblem]:
        return [problem for problem in self.problems if problem.is_error]

    def lines(self) -> list[str]:
        """One line for each kind of problem, with the first few names."""
        lines: list[str] = []
        for kind in dict.fromkeys(problem.kind for problem in self.problems):
            of_kind = [problem for problem in self.problems if problem.kind == kind]
            names = [" = ".join(each.keys[:4]) + (f" ({each.why})" if each.why else "") for each in of_kind]
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            level = "error" if of_kind[0].is_error else "warning"
            lines.append(f"{level}: {kind}: {'; '.join(names[:MAX_NAMES])}{more}")
        return lines

    def write(self, path: Path) -> None:
        content = {
            "data": self.data,
            "digest": self.digest,
            "examples": self.num_examples,
            "good": len(self.good),
            "faults": [asdict(problem) for problem in self.problems],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def check(
    examples: Sequence[Example],
    *,
    data: str,
    min_side: int = 64,
    needs_captions: bool = True,
    needs_masks: bool = False,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> DataReport:
    """Open every picture once; `on_progress` is called with the number of checked examples and their total."""
    good: list[CheckedExample] = []
    problems: list[ExampleProblem] = []
    total = hashlib.sha256()
    for number, example in enumerate(examples, 1):
        checked = check_example(example, min_side=min_side, needs_captions=needs_captions, needs_mask=needs_masks)
        if isinstance(checked, ExampleProblem):
            problems.append(checked)
        else:
            if needs_captions and not example.caption:
                problems.append(ExampleProblem("empty caption", (example.key,)))
            mask = hashlib.sha256(example.read_mask()).hexdigest() if example.read_mask else ""
            content = [example.key, checked.sha256, example.caption or "", mask]
            total.update(json.dumps(content, ensure_ascii=False).encode())
            good.append(checked)
        on_progress(number, len(examples))
    problems += find_duplicates(good)
    if needs_captions:
        problems += find_similar_captions(good)
    digest = total.hexdigest()
    return DataReport(data=data, num_examples=len(examples), good=tuple(good), problems=tuple(problems), digest=digest)


def check_example(
    example: Example, *, min_side: int, needs_captions: bool, needs_mask: bool
) -> CheckedExample | ExampleProblem:
    """Open an example's picture, and look for its caption and its mask."""
    key = (example.key,)
    try:
        data = example.read()
        image = open_image(data, max_pixels=MAX_PIXELS, max_file_bytes=MAX_BYTES)
    except InvalidImage as error:
        return ExampleProblem("unreadable picture", key, str(error))
    except (OSError, ValueError) as error:
        return ExampleProblem("unreadable picture", key, f"{type(error).__name__}: {error}")
    if min(image.size) < min_side:
        return ExampleProblem("tiny picture", key, f"{image.width}x{image.height}, and at least {min_side} is required")
    if needs_captions and example.caption is None:
        return ExampleProblem("missing caption", key)
    if needs_mask and (why := mask_problem(example.read_mask)):
        return ExampleProblem("missing mask", key, why)
    sha256 = hashlib.sha256(data).hexdigest()
    return CheckedExample(example=example, size=image.size, sha256=sha256, perceptual_hash=dhash(image))


def mask_problem(read: Read | None) -> str:
    """Why the mask cannot be used; empty if it can."""
    if read is None:
        return "there is no NAME.mask.png beside it"
    try:
        open_image(read(), max_pixels=MAX_PIXELS, max_file_bytes=MAX_BYTES)
    except (InvalidImage, OSError) as error:
        return str(error)
    return ""


def dhash(image: Image.Image) -> int:
    """The 64-bit difference hash: in a 9x8 miniature, whether each pixel is brighter than its left neighbour."""
    levels = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS), np.int16)
    bits = (levels[:, 1:] > levels[:, :-1]).flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def find_duplicates(good: Sequence[CheckedExample]) -> list[ExampleProblem]:
    """Groups of identical files, and of pictures that look the same."""
    by_sha256: dict[str, list[CheckedExample]] = defaultdict(list)
    for checked in good:
        by_sha256[checked.sha256].append(checked)
    problems = [
        ExampleProblem("same picture", tuple(checked.example.key for checked in group))
        for group in by_sha256.values()
        if len(group) > 1
    ]
    distinct = [group[0] for group in by_sha256.values()]
    hashes = np.array([checked.perceptual_hash for checked in distinct], np.uint64)
    for number, checked in enumerate(distinct):
        bits = np.bitwise_count(hashes[number + 1 :] ^ hashes[number])
        near = [distinct[number + 1 + int(index)].example.key for index in np.flatnonzero(bits <= MAX_DUPLICATE_BITS)]
        if near:
            problems.append(ExampleProblem("nearly the same picture", (checked.example.key, *near)))
    return problems


def find_similar_captions(good: Sequence[CheckedExample]) -> list[ExampleProblem]:
    """Captions of the same words, ignoring order, case and punctuation."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for checked in good:
        if checked.example.caption:
            groups[tuple(sorted(re.findall(r"\w+", checked.example.caption.casefold())))].append(checked.example.key)
    return [ExampleProblem("nearly the same caption", tuple(keys)) for keys in groups.values() if len(keys) > 1]


def require_good(report: DataReport, *, skip_bad: bool) -> None:
    """Raises InvalidRequest if there are errors that may not be skipped, or no good examples."""
    if report.errors and not skip_bad:
        errors = "; ".join(line for line in report.lines() if line.startswith("error"))
        raise InvalidRequest(f"{report.data}: {errors}; fix these, or skip them with --skip-bad")
    if not report.good:
        raise InvalidRequest(f"{report.data}: no pictures are left to train on; {'; '.join(report.lines())}")
