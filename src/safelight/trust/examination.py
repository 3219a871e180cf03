"""What all detectors together say of a file: one answer, layer by layer, as JSON that can be signed.

Each layer stands by itself and is named by its technique. A layer that says nothing proves nothing: marks can be
removed, and pictures of other makers may carry none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from safelight.trust.facts import COMPOSITE_SYNTHETIC, COMPOSITE_TRAINED, GENERATED, TRAINED
from safelight.trust.verify import Report
from safelight.version import __version__

Json = dict[str, Any]
Conclusion = Literal["marked", "broken", "unmarked"]
"""marked: at least one layer says what the picture is, and none is broken. broken: a signature does not hold, or
the watermark is of another picture. unmarked: no layer says anything."""
Generated = Literal["yes", "partly", "not said"]
"""Whether a generative model made the picture, by what its marks say."""
ORIGIN: dict[str, Generated] = {TRAINED: "yes", COMPOSITE_TRAINED: "partly", COMPOSITE_SYNTHETIC: "partly"}
BROKEN = ("invalid", "differs")
EXIT_CODES: dict[Conclusion, int] = {"marked": 0, "unmarked": 1, "broken": 3}
"""Of `safelight verify`; 2 is for files that cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    name: str
    technique: str
    found: bool
    state: str
    """Of a signature: valid, untrusted, invalid, absent; of a watermark: found, differs (it was made for another
    picture), absent; of other layers: found or absent."""
    says: Json
    reasons: tuple[str, ...] = ()

    def to_json(self) -> Json:
        return {
            "layer": self.name,
            "technique": self.technique,
            "found": self.found,
            "state": self.state,
            "says": self.says,
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    sha256: str
    mime: str
    layers: Sequence[Layer]
    at: datetime

    @property
    def conclusion(self) -> Conclusion:
        if any(layer.state in BROKEN for layer in self.layers):
            return "broken"
        return "marked" if any(layer.found for layer in self.layers) else "unmarked"

    @property
    def generated(self) -> Generated:
        """By the first layer that says it; what is signed and broken says nothing."""
        for layer in self.layers:
            kind = layer.says.get("source_type", "")
            if layer.state not in BROKEN and kind in GENERATED:
                return ORIGIN.get(kind, "yes")
        return "not said"

    @property
    def missing(self) -> list[str]:
        return [layer.name for layer in self.layers if not layer.found]

    def to_json(self) -> Json:
        return {
            "file": {"sha256": self.sha256, "type": self.mime},
            "conclusion": self.conclusion,
            "generated": self.generated,
            "layers": [layer.to_json() for layer in self.layers],
            "missing": self.missing,
            "detector": {"name": "safelight", "version": __version__},
            "time": self.at.astimezone(UTC).isoformat(timespec="seconds"),
        }


def examination(report: Report, *, at: datetime, further: Sequence[Layer] = ()) -> Examination:
    """
    Args:
        further: layers that other detectors found.
    """
    layers = [signature_layer(report), metadata_layer(report), *further]
    return Examination(sha256=report.sha256, mime=report.mime, layers=layers, at=at)


def signature_layer(report: Report) -> Layer:
    found = report.signature
    said = {
        "signed_by": found.common_name,
        "issuer": found.issuer,
        "time_stamp": found.time_stamp,
        "time_stamp_trusted": found.time_stamp_trusted if found.time_stamp else None,
        "made_with": found.generator,
        "actions": list(found.actions),
        "source_type": found.source_types[-1] if found.source_types else "",
        "made_of": [
            {"title": one.title, "as": one.relationship, "signature": one.signature, "reasons": list(one.reasons)}
            for one in found.ingredients
        ],
    }
    return Layer(
        name="signature",
        technique="C2PA manifest",
        found=found.state != "absent",
        state=found.state,
        says={name: value for name, value in said.items() if value not in ("", None, [])},
        reasons=found.reasons,
    )


def metadata_layer(report: Report) -> Layer:
    found = report.metadata
    said: Json = {
        "source_type": found.source_type,
        "ai_system": found.ai_system,
        "ai_system_version": found.ai_system_version,
        "aigc": dict(found.aigc) if found.aigc is not None else None,
    }
    says = {name: value for name, value in said.items() if value}
    return Layer(
        name="metadata",
        technique="IPTC digital source type and AIGC label in XMP, which anyone can write",
        found=bool(says),
        state="found" if says else "absent",
        says=says,
    )
