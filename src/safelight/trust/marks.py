"""Marks in a picture's metadata, as XMP elements that any program reads (IPTC Photo Metadata 2025.1, GB 45438-2025).

They name neither prompt nor user nor key.
"""

import json

from safelight.imaging.xmp import AI_SYSTEM, AI_SYSTEM_VERSION, AIGC, DIGITAL_SOURCE_TYPE
from safelight.spec import Denoised, TextToImage, Upscale, Variation
from safelight.trust.facts import COMPOSITE_TRAINED, GENERATED, TRAINED, Facts, public_name
from safelight.trust.policy import Policy

LANCZOS = "lanczos"
"""The one upscaler that adds nothing of a network's."""


def marks(spec: Denoised | Upscale, facts: Facts, policy: Policy) -> dict[str, str]:
    """XMP elements by name, for `encode`; none where nothing is to be said."""
    kind = source_type(spec, facts)
    elements: dict[str, str] = {}
    if "eu" in policy.profiles and kind:
        elements[DIGITAL_SOURCE_TYPE] = kind
        if system := system_used(spec, facts):
            elements |= {AI_SYSTEM: system, AI_SYSTEM_VERSION: facts.version}
    if "cn" in policy.profiles and kind in GENERATED:
        elements[AIGC] = aigc_label(policy.producer, facts.uid)
    return elements


def derived_marks(facts: Facts, policy: Policy) -> dict[str, str]:
    """XMP elements of a picture that was made of a marked one by geometry alone: what that one said."""
    kind = facts.source_type
    elements = {DIGITAL_SOURCE_TYPE: kind} if "eu" in policy.profiles and kind else {}
    if "cn" in policy.profiles and kind in GENERATED:
        elements[AIGC] = aigc_label(policy.producer, facts.uid)
    return elements


def source_type(spec: Denoised | Upscale, facts: Facts) -> str:
    """IPTC's digital source type as its full URI; "" where nothing is known of the picture that was enlarged."""
    match spec:
        case TextToImage() | Variation():
            return TRAINED
        case Upscale(method=method):
            kept = method == LANCZOS or (facts.own_source and facts.source_type)
            return facts.source_type if kept else COMPOSITE_TRAINED
        case _:
            return COMPOSITE_TRAINED


def system_used(spec: Denoised | Upscale, facts: Facts) -> str:
    """The AI system; "" where none of ours had a part in the picture."""
    if not isinstance(spec, Upscale):
        return f"safelight / {public_name(spec.model)}"
    if spec.method != LANCZOS:
        return f"safelight / {public_name(spec.method)}"
    return "safelight" if facts.own_source else ""


def aigc_label(producer: str, uid: str) -> str:
    """China's implicit label: made by a model (1), by whom, and under which number."""
    label = {
        "Label": "1",
        "ContentProducer": producer,
        "ProduceID": uid,
        "ReservedCode1": "",
        "ContentPropagator": producer,
        "PropagateID": uid,
        "ReservedCode2": "",
    }
    return json.dumps(label, separators=(",", ":"))
