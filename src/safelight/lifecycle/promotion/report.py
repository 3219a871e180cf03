"""The report of a comparison: JSON for programs, an HTML page with the pictures for people."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image

from safelight.errors import StorageFailed
from safelight.imaging.grid import paste
from safelight.lifecycle.evaluation.gate import Policy, Verdict, judge_report
from safelight.lifecycle.promotion.compare import ComparisonResult

ReportPictures = dict[str, Any]
"""The page's pictures as JSON: rows by prompt, pairs of a sample and a training picture, the number of seeds."""
MAX_SIDE = 160
"""Longest side of a picture on the page, in pixels."""
MEANINGS = {
    "prompt_fidelity_change": "change in the share of pictures most similar to their own prompt of the set",
    "likeness_change": "change in similarity to the training pictures",
    "diversity_ratio": "difference between pictures of one prompt, relative to the model before",
    "neutral_drift": "change of pictures of neutral prompts, relative to the change between prompts",
    "copies": "share of samples too near to a training picture",
    "membership_auc": "how well losses distinguish training pictures from others; 0.5 is chance",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    digest: str
    """`Comparison.digest`."""
    before: str
    after: str
    eyes: str
    """Name of the image encoder; the field's name is stored."""
    made: str
    numbers: dict[str, float]
    words: list[str]

    @property
    def title(self) -> str:
        return self.after if self.after == self.before else f"{self.after} beside {self.before}"

    def verdict(self, policy: Policy) -> Verdict:
        return judge_report(policy, self.numbers)

    def as_dict(self, policy: Policy) -> dict[str, Any]:
        verdict = self.verdict(policy)
        fields = {
            name: getattr(self, name) for name in ("digest", "before", "after", "eyes", "made", "numbers", "words")
        }
        return fields | {
            "policy": policy.model_dump(exclude_none=True)["metrics"],
            "passed": verdict.passed,
            "reasons": list(verdict.reasons),
        }


def make_report(result: ComparisonResult) -> Report:
    comparison = result.comparison
    return Report(
        digest=comparison.digest(),
        before=comparison.before.name,
        after=comparison.after.name,
        eyes=comparison.encoder_name,
        made=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        numbers={name: round(number, 4) for name, number in result.numbers.items()},
        words=[*comparison.after.caveats, *(result.audit.findings if result.audit else [NO_TRAINING_DATA])],
    )


NO_TRAINING_DATA = (
    "The training pictures of the second model are not known or no longer exist, so likeness and memorisation were not "
    "measured: name the pictures with --data."
)


def load_report(folder: Path, digest: str) -> tuple[Report, ReportPictures] | None:
    """The stored report of the same comparison and its pictures, if there is one."""
    try:
        stored = json.loads((folder / f"{digest[:16]}.json").read_text("utf-8"))
        pictures = json.loads((folder / f"{digest[:16]}.pictures").read_text("utf-8"))
        return Report(**{name: stored[name] for name in Report.__dataclass_fields__}), pictures
    except (OSError, ValueError, KeyError):
        return None


def write_report(folder: Path, report: Report, pictures: ReportPictures, policy: Policy) -> Path:
    """Write DIGEST.html and DIGEST.json, the numbers with the verdict of this policy. Returns the HTML page's path.

    DIGEST.pictures is stored to render the same numbers under another policy.

    Raises:
        StorageFailed: the disk is full, or the folder cannot be written to.
    """
    data, page, stored = (folder / f"{report.digest[:16]}.{ending}" for ending in ("json", "html", "pictures"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stored.write_text(json.dumps(pictures), "utf-8")
        page.write_text(as_page(report, pictures, policy), "utf-8")
        data.write_text(json.dumps(report.as_dict(policy), indent=2) + "\n", "utf-8")
    except OSError as error:
        raise StorageFailed(f"the report could not be written to {folder}: {error.strerror}") from None
    return page


def pictures_of(result: ComparisonResult) -> ReportPictures:
    comparison = result.comparison
    rows = [
        {
            "prompt": prompt.prompt,
            "neutral": prompt.neutral,
            "sheets": [as_url(row_of(drawn, number, comparison.seeds)) for drawn in result.drawn],
        }
        for number, prompt in enumerate(comparison.prompts)
    ]
    pairs = [
        {
            "images": [as_url(smaller(image)) for image in (pair.sample, pair.training)],
            "distance": pair.nearest.distance,
            "pixel_distance": pair.nearest.pixel_distance,
            "is_copy": pair.nearest.is_copy,
        }
        for pair in result.pairs
    ]
    return {"rows": rows, "pairs": pairs, "seeds": comparison.seeds}


def as_page(report: Report, pictures: ReportPictures, policy: Policy) -> str:
    gates = [gate(name, report.numbers.get(name), policy) for name in policy.metrics]
    environment = Environment(loader=PackageLoader("safelight.lifecycle.promotion", "."), autoescape=True)
    return environment.get_template("report.html").render(
        report=report,
        verdict=report.verdict(policy),
        gates=gates,
        **pictures,
    )


def gate(name: str, value: float | None, policy: Policy) -> dict[str, Any]:
    """One row of the page's table: a metric, its value, and its bounds."""
    bound = policy.metrics[name]
    wanted = [f"at least {bound.min:g}"] if bound.min is not None else []
    wanted += [f"at most {bound.max:g}"] if bound.max is not None else []
    single = Policy(metrics={name: bound})
    return {
        "name": name,
        "meaning": MEANINGS.get(name, ""),
        "value": "not measured" if value is None else f"{value:.3f}",
        "wanted": " and ".join(wanted),
        "passed": judge_report(single, {} if value is None else {name: value}).passed,
    }


def row_of(drawn: Sequence[Image.Image], number: int, seeds: int) -> Image.Image:
    return paste([[smaller(image) for image in drawn[number * seeds : (number + 1) * seeds]]])


def smaller(image: Image.Image) -> Image.Image:
    image = image.convert("RGB")
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image


def as_url(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
