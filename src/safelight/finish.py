"""The last stage of every picture that leaves: encoded with its marks, signed, stored.

    pixels -> watermark -> encode with metadata and marks -> sign -> file by the sha256 of its bytes -> ledger

Nothing changes a file after it was signed. What is made of a stored picture by geometry alone, such as a smaller copy,
is marked and signed again, with that picture as its parent (`derive`).
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import torch
from PIL import Image

from safelight.assets.encode import Encoding, encode, encode_marked, pixels_digest
from safelight.assets.store import Asset
from safelight.errors import UnknownAsset
from safelight.imaging.canvas import painted_box
from safelight.models.adapters.lora_hash import lora_hashes
from safelight.models.registry.registered_models import registered_lineage
from safelight.spec import Denoised, Inpaint, Upscale
from safelight.studio import Studio
from safelight.trust.entry import Entry, actor_of
from safelight.trust.facts import Facts, Origin, WatermarkFact
from safelight.trust.fingerprint import likeness
from safelight.trust.manifest import Manifest, derived, manifest, pinned
from safelight.trust.marks import derived_marks, marks, source_type
from safelight.trust.origins import UNMARKED
from safelight.trust.sign import sign
from safelight.trust.watermark.embed import embed
from safelight.trust.watermark.keys import asset_id
from safelight.version import __version__

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    asset: Asset
    marks: Mapping[str, str]
    """What became of each layer. `watermark` is marked, weak, off or unmarked by size; `signature` is signed or off;
    `timestamp` is stamped, missed or off."""
    new: bool = True
    """The file was signed now, and not before."""
    pixels: str = ""
    """sha256 of the pixels as they were drawn (`assets.encode.pixels_digest`)."""
    uid: str = ""
    """The 64 bits in the watermark, as 16 hex digits."""


def finish(
    image: Image.Image,
    spec: Denoised | Upscale,
    studio: Studio,
    encoding: Encoding,
    *,
    tenant: str = "",
    place: str = "",
) -> Finished:
    """Store a finished picture with all the marks that the policy names, and write it into the ledger.

    Args:
        place: the request and the picture's place in it, such as the id of its job: it has one picture for good.

    Raises:
        SigningFailed: the picture could not be signed; nothing is stored.
        StorageFailed: the disk is full.
        UnsupportedOption: the format cannot hold the picture.
    """
    pixels = pixels_digest(image)
    facts = facts_of(spec, studio, encoding)
    image, facts, marked = watermarked(image, spec, facts, studio)
    hashes = {} if isinstance(spec, Upscale) else lora_hashes(spec.loras, studio.models.catalogue)
    file = encode(
        image,
        spec,
        encoding,
        version=__version__,
        drawn={"pixels": pixels} | ({"watermark": asdict(facts.watermark)} if facts.watermark else {}),
        marks=marks(spec, facts, studio.policy),
        lora_hashes=hashes,
    )
    instead = {} if isinstance(spec, Upscale) else {control.image: control.hint for control in spec.controls}
    finished = put_signed(file, manifest(spec, facts, studio.policy), studio, encoding, instead=instead)
    finished = replace(finished, pixels=pixels, marks={**finished.marks, "watermark": marked}, uid=facts.uid)
    return recorded(finished, image, spec, studio, tenant=tenant, place=place) if studio.ledger else finished


def watermarked(
    image: Image.Image, spec: Denoised | Upscale, facts: Facts, studio: Studio
) -> tuple[Image.Image, Facts, str]:
    """The picture with its watermark, what is true of it then, and what became of the mark.

    What no model made, such as a photograph that Lanczos enlarged, gets none.
    """
    if studio.keyring is None or not source_type(spec, facts):
        return image, facts, "off"
    key = studio.keyring.current
    image, outcome = embed(image, key, asset_id(key, spec.digest()))
    facts = replace(facts, uid=outcome.asset)
    if outcome.status == "unmarked":
        return image, facts, f"unmarked by {outcome.reason}"
    strength = "weak" if outcome.status == "weak" else ""
    fact = WatermarkFact(alg=outcome.algorithm, key_id=outcome.key_id, strength=strength)
    return image, replace(facts, watermark=fact), outcome.status


def recorded(
    finished: Finished, image: Image.Image, spec: Denoised | Upscale, studio: Studio, *, tenant: str, place: str
) -> Finished:
    """The picture with its row in the ledger; or the one that its place in the request had already."""
    assert studio.ledger
    signer = studio.signer
    words = {} if isinstance(spec, Upscale) else {"prompt": spec.prompt, "negative_prompt": spec.negative_prompt}
    entry = Entry(
        action="upscaled" if isinstance(spec, Upscale) else "drawn",
        asset_id=finished.asset.id,
        actor=actor_of(tenant),
        uid=finished.uid,
        pixels_before=finished.pixels,
        pixels_after=pixels_digest(image),
        spec_digest=spec.digest(),
        model="" if isinstance(spec, Upscale) else spec.model_digest,
        place=place,
        marks=dict(finished.marks) | ({"certificate": signer.credentials.description.fingerprint} if signer else {}),
        words={name: text for name, text in words.items() if text},
        likeness=likeness(image),
    )
    appended = studio.ledger.append(entry)
    if appended.asset_id == finished.asset.id:
        return finished
    if finished.new:
        studio.assets.remove(finished.asset.id)
    path = studio.assets.path_of(appended.asset_id)
    return replace(finished, asset=Asset(id=appended.asset_id, path=path, size_bytes=path.stat().st_size))


def derive(asset_id: str, image: Image.Image, studio: Studio, encoding: Encoding, *, actions: tuple[str, ...]) -> bytes:
    """The file of a picture that was made of a stored one by geometry alone.

    Args:
        actions: what was done, in C2PA's terms, such as `c2pa.cropped`.
    """
    source = studio.origin(asset_id)
    facts = Facts(version=__version__, when=datetime.now(UTC), uid=asset_id[:16], source_type=source.source_type)
    file = encode_marked(image, encoding, derived_marks(facts, studio.policy))
    if studio.signer is None:
        return file
    found = derived(asset_id, actions, facts)
    return sign(file, found, studio.signer, pictures={asset_id: file_of(asset_id, studio)}).data


def put_signed(
    file: bytes, found: Manifest, studio: Studio, encoding: Encoding, *, instead: Mapping[str, str]
) -> Finished:
    """Sign and store a file. The same file is signed once, so that a repeated job does not make a second picture of it.

    Args:
        instead: for inputs that may not be stored any more, what to show in their place, by digest.
    """
    if studio.signer is None:
        return Finished(asset=studio.assets.put(file, encoding.suffix), marks={"signature": "off"})
    pictures = {given.digest: file_of(given.digest, studio, instead.get(given.digest)) for given in found.inputs}
    key = hashlib.sha256(file)
    key.update(studio.signer.credentials.description.fingerprint.encode())
    key.update(studio.policy.timestamp.encode())
    for digest in sorted(pictures):
        key.update(hashlib.sha256(pictures[digest]).digest())
    if known := studio.assets.signed_before(key.hexdigest()):
        return Finished(asset=known, marks={"signature": "signed"}, new=False)
    signed = sign(file, found, studio.signer, pictures=pictures)
    asset = studio.assets.put(signed.data, encoding.suffix)
    studio.assets.note_signed(key.hexdigest(), asset)
    if signed.why_missed:
        log.warning("a picture is signed without a time stamp: %s", signed.why_missed)
    return Finished(asset=asset, marks={"signature": "signed", "timestamp": signed.timestamp})


def file_of(digest: str, studio: Studio, instead: str | None = None) -> bytes:
    """What stands for a stored picture in a manifest: what was kept of it when it was sent, or its file."""
    try:
        return studio.origins.of(digest).archive or studio.assets.read(digest)
    except UnknownAsset:
        if instead is None:
            raise
        return studio.assets.read(instead)


def facts_of(spec: Denoised | Upscale, studio: Studio, encoding: Encoding) -> Facts:
    """What is true of the picture beyond its spec."""
    facts = Facts(
        version=__version__,
        when=datetime.now(UTC),
        uid=spec.digest()[:16],
        torch_version=torch.__version__,
        origins=lineage_of(spec, studio),
        full_metadata=encoding.metadata == "full",
    )
    match spec:
        case Inpaint():
            box = painted_box(studio.picture(spec.mask), spec, size=studio.size_of(spec.init))
            return replace(facts, region=box)
        case Upscale():
            source = studio.origin(spec.init)
            own = source.archive is not None and studio.origins.of(spec.init) == UNMARKED
            return replace(facts, own_source=own, source_type=source.source_type)
        case _:
            return facts


def lineage_of(spec: Denoised | Upscale, studio: Studio) -> dict[str, Origin]:
    """Where the weights come from that the registry knows, by their digest."""
    digests = [digest for _, _, digest in pinned(spec)]
    return {
        digest: Origin(
            trained_from=tuple(parent.digest for parent in lineage.parents if parent.digest),
            data_set=lineage.dataset_digest,
        )
        for digest, lineage in registered_lineage(studio.settings, digests).items()
    }
