"""What a comparison came to: JSON for machines, a page with its pictures for people."""

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

Shown = dict[str, Any]
"""What the page shows beside the numbers, as JSON: rows of pictures, pairs with training pictures, how many seeds."""
WIDEST = 160
"""Pixels, of a picture on the page."""
MEANINGS = {
    "prompt_fidelity_change": "share of pictures that fit their prompt best of all asked, less that of before",
    "likeness_change": "how much nearer pictures have come to what was learnt",
    "diversity_ratio": "how much pictures of one prompt differ, as a share of before",
    "neutral_drift": "how far pictures of other things moved, as a share of what another prompt changes",
    "copies": "share of samples that are too near to a training picture",
    "membership_auc": "how well training pictures can be told from others by their losses; .5 is a coin",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    digest: str
    """Of what was asked (`Comparison.digest`)."""
    before: str
    after: str
    eyes: str
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
        known = {
            name: getattr(self, name) for name in ("digest", "before", "after", "eyes", "made", "numbers", "words")
        }
        return known | {
            "policy": policy.model_dump(exclude_none=True)["metrics"],
            "passed": verdict.passed,
            "reasons": list(verdict.reasons),
        }


def report_of(findings: ComparisonResult) -> Report:
    asked = findings.asked
    return Report(
        digest=asked.digest(),
        before=asked.before.name,
        after=asked.after.name,
        eyes=asked.eyes_name,
        made=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        numbers={name: round(number, 4) for name, number in findings.numbers.items()},
        words=[*asked.after.doubts, *(findings.audit.words if findings.audit else [NOTHING_KNOWN])],
    )


NOTHING_KNOWN = (
    "What the second model was trained on is not known or no longer there, so nothing is said of likeness and memory: "
    "name the pictures with --data."
)


def kept_report(folder: Path, digest: str) -> tuple[Report, Shown] | None:
    """One that was made of the same question before, and its pictures."""
    try:
        known = json.loads((folder / f"{digest[:16]}.json").read_text("utf-8"))
        shown = json.loads((folder / f"{digest[:16]}.pictures").read_text("utf-8"))
        return Report(**{name: known[name] for name in Report.__dataclass_fields__}), shown
    except (OSError, ValueError, KeyError):
        return None


def write_report(folder: Path, report: Report, shown: Shown, policy: Policy) -> Path:
    """DIGEST.html, which it returns, and DIGEST.json: numbers, and the verdict of this policy on them.

    DIGEST.pictures is kept for the same numbers under another policy.

    Raises:
        StorageFailed: there is no room, or no right to write.
    """
    data, page, pictures = (folder / f"{report.digest[:16]}.{ending}" for ending in ("json", "html", "pictures"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures.write_text(json.dumps(shown), "utf-8")
        page.write_text(as_page(report, shown, policy), "utf-8")
        data.write_text(json.dumps(report.as_dict(policy), indent=2) + "\n", "utf-8")
    except OSError as error:
        raise StorageFailed(f"the report could not be written to {folder}: {error.strerror}") from None
    return page


def shown_of(findings: ComparisonResult) -> Shown:
    asked = findings.asked
    rows = [
        {
            "prompt": question.prompt,
            "neutral": question.neutral,
            "sheets": [as_url(row_of(drawn, number, asked.seeds)) for drawn in findings.drawn],
        }
        for number, question in enumerate(asked.questions)
    ]
    pairs = [
        {
            "images": [as_url(smaller(image)) for image in (pair.sample, pair.training)],
            "distance": pair.nearest.distance,
            "pixel_distance": pair.nearest.pixel_distance,
            "is_copy": pair.nearest.is_copy,
        }
        for pair in findings.pairs
    ]
    return {"rows": rows, "pairs": pairs, "seeds": asked.seeds}


def as_page(report: Report, shown: Shown, policy: Policy) -> str:
    gates = [gate(name, report.numbers.get(name), policy) for name in policy.metrics]
    environment = Environment(loader=PackageLoader("safelight.lifecycle.promotion", "."), autoescape=True)
    return environment.get_template("report.html").render(
        report=report,
        verdict=report.verdict(policy),
        gates=gates,
        **shown,
    )


def gate(name: str, value: float | None, policy: Policy) -> dict[str, Any]:
    bound = policy.metrics[name]
    wanted = [f"at least {bound.min:g}"] if bound.min is not None else []
    wanted += [f"at most {bound.max:g}"] if bound.max is not None else []
    one = Policy(metrics={name: bound})
    return {
        "name": name,
        "meaning": MEANINGS.get(name, ""),
        "value": "not measured" if value is None else f"{value:.3f}",
        "wanted": " and ".join(wanted),
        "passed": judge_report(one, {} if value is None else {name: value}).passed,
    }


def row_of(drawn: Sequence[Image.Image], number: int, seeds: int) -> Image.Image:
    return paste([[smaller(image) for image in drawn[number * seeds : (number + 1) * seeds]]])


def smaller(image: Image.Image) -> Image.Image:
    image = image.convert("RGB")
    image.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    return image


def as_url(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
