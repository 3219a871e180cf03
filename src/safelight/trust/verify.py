"""Ask a file what it says of itself: which marks it carries, what each says, and whether it holds.

    bytes -> Report(signature, metadata)

Nothing is fetched and nothing is kept. The formats are told apart by the bytes. Each layer stands by itself: metadata
anyone can write or remove, while a signature that is valid was made by whoever holds the certificate's key.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, cast

from safelight.imaging import xmp
from safelight.imaging.open_image import MIME, detect_format, open_checked

if TYPE_CHECKING:
    from c2pa import Context

State = Literal["valid", "untrusted", "invalid", "absent"]
"""untrusted: the bytes are those that were signed, by a certificate of an authority that is not trusted here."""
UNTRUSTED = "signingCredential.untrusted"
TIME_STAMP_TRUSTED = "timeStamp.trusted"
ACTIONS = ("c2pa.actions.v2", "c2pa.actions")
MAX_XMP_BYTES = 4_000_000
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class IngredientFound:
    """A picture that this one was made from, as its manifest tells."""

    title: str
    relationship: str
    signature: State
    """What its own manifest's verification found when it was taken in."""
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureFound:
    """The C2PA manifest."""

    state: State
    reasons: tuple[str, ...] = ()
    """C2PA's codes of what is wrong, with explanations; for the ingredients see there."""
    common_name: str = ""
    issuer: str = ""
    time_stamp: str = ""
    """When a time stamp authority saw the signature; empty without a time stamp."""
    time_stamp_trusted: bool = False
    """Whether that authority is trusted here; only then does the signature outlive its certificate."""
    generator: str = ""
    actions: tuple[str, ...] = ()
    source_types: tuple[str, ...] = ()
    ingredients: tuple[IngredientFound, ...] = ()
    manifest: Json = field(default_factory=dict[str, Any])
    """All of it, as c2pa reports it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataFound:
    """What anyone could have written."""

    source_type: str = ""
    ai_system: str = ""
    ai_system_version: str = ""
    aigc: Json | None = None
    """China's label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    sha256: str
    mime: str
    signature: SignatureFound
    metadata: MetadataFound


def verify(
    data: bytes, context: "Context", *, max_pixels: int, max_file_bytes: int, sidecar: bytes | None = None
) -> Report:
    """
    Args:
        context: with the roots to trust (`signer.make_context`).
        sidecar: the manifest, where it lies in a file of its own.

    Raises:
        InvalidImage: the file is no picture, or not one that is safe to open.
    """
    with open_checked(data, max_pixels=max_pixels, max_file_bytes=max_file_bytes) as image:
        texts = cast(dict[str, Any], image.info)
        metadata = read_marks(texts)
    mime = MIME[detect_format(data)]
    return Report(
        sha256=hashlib.sha256(data).hexdigest(),
        mime=mime,
        signature=read_signature(data, mime, context, sidecar),
        metadata=metadata,
    )


# The signature ----------------------------------------------------------------------------------------------------


def read_signature(data: bytes, mime: str, context: "Context", sidecar: bytes | None = None) -> SignatureFound:
    """The manifest in the file, or in its sidecar, and what its verification found."""
    from c2pa import C2paError, Reader

    try:
        reader = Reader.try_create(mime, BytesIO(data), sidecar, context)
        if reader is None:
            return SignatureFound(state="absent")
        with reader:
            found: Json = json.loads(reader.json())
    except C2paError as error:
        return SignatureFound(state="invalid", reasons=(f"the manifest cannot be read: {error}",))
    manifests = found.get("manifests", {})
    active: Json = manifests.get(found.get("active_manifest", ""), {})
    signed = active.get("signature_info", {})
    failures = list(failures_of(found.get("validation_results", {})))
    results: Json = found.get("validation_results", {}).get("activeManifest", {})
    generators = active.get("claim_generator_info") or [{}]
    return SignatureFound(
        state=state_of(failures),
        reasons=explained(failures),
        common_name=signed.get("common_name", ""),
        issuer=signed.get("issuer", ""),
        time_stamp=signed.get("time", ""),
        time_stamp_trusted=any(one.get("code") == TIME_STAMP_TRUSTED for one in results.get("success", ())),
        generator=" ".join(filter(None, (generators[0].get("name", ""), generators[0].get("version", "")))),
        actions=tuple(action.get("action", "") for action in actions_of(active)),
        source_types=tuple(kind for action in actions_of(active) if (kind := action.get("digitalSourceType"))),
        ingredients=tuple(ingredient_found(ingredient) for ingredient in active.get("ingredients", ())),
        manifest=found,
    )


def ingredient_found(ingredient: Json) -> IngredientFound:
    failures = list(failures_of(ingredient.get("validation_results", {})))
    return IngredientFound(
        title=ingredient.get("title", ""),
        relationship=ingredient.get("relationship", ""),
        signature=state_of(failures) if "active_manifest" in ingredient or failures else "absent",
        reasons=explained(failures),
    )


def failures_of(results: Json) -> Iterator[Json]:
    """Of the manifest itself, and what has changed in its ingredients since they were taken in."""
    yield from results.get("activeManifest", {}).get("failure", ())
    for delta in results.get("ingredientDeltas") or ():
        yield from delta.get("validationDeltas", {}).get("failure", ())


def state_of(failures: list[Json]) -> State:
    codes = {failure.get("code") for failure in failures}
    return "invalid" if codes - {UNTRUSTED} else "untrusted" if codes else "valid"


def explained(failures: list[Json]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{one.get('code', '')}: {one.get('explanation', '')}" for one in failures))


def actions_of(manifest: Json) -> Iterator[Json]:
    for assertion in manifest.get("assertions", ()):
        if assertion.get("label", "").partition("__")[0] in ACTIONS:
            yield from assertion.get("data", {}).get("actions", ())


# Metadata ---------------------------------------------------------------------------------------------------------


def read_marks(texts: Mapping[str, Any]) -> MetadataFound:
    """From the texts of a file, by Pillow's names."""
    packet = texts.get("xmp", b"")
    packet = packet.decode(errors="replace") if isinstance(packet, bytes) and len(packet) <= MAX_XMP_BYTES else ""
    label = xmp.element(packet, xmp.AIGC) or texts.get("AIGC", "")
    return MetadataFound(
        source_type=xmp.element(packet, xmp.DIGITAL_SOURCE_TYPE) or "",
        ai_system=xmp.element(packet, xmp.AI_SYSTEM) or "",
        ai_system_version=xmp.element(packet, xmp.AI_SYSTEM_VERSION) or "",
        aigc=read_label(label) if isinstance(label, str) else None,
    )


def read_label(text: str) -> Json | None:
    with suppress(ValueError, RecursionError):
        label = json.loads(text)
        if isinstance(label, dict):
            return cast(Json, label)
    return None
