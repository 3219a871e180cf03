"""What a file says of itself, and what is wrong with it."""

import pytest
from PIL import Image
from tests.assets.files import saved
from tests.trust.authority import issue
from tests.trust.pictures import APPLE, FORMATS, NOISE, NOW, POLICY, picture, plain, report

from safelight.assets.encode import Format
from safelight.errors import InvalidImage
from safelight.trust.facts import SOURCE_TYPES, TRAINED
from safelight.trust.manifest import manifest
from safelight.trust.policy import Policy
from safelight.trust.sign import sign
from safelight.trust.signer import Signer, make_context

MADE = manifest(APPLE, NOW, POLICY)


def signed(signer: Signer, kind: Format = "png") -> bytes:
    return sign(picture(kind), MADE, signer).data


def test_a_marked_picture_says_all_that_it_is(signer: Signer) -> None:
    found = report(signed(signer), signer.context)
    assert found.mime == "image/png"
    assert len(found.sha256) == 64
    assert found.signature.generator == "safelight 0.1.0"
    assert found.signature.issuer == "safelight"
    assert found.signature.source_types == (TRAINED,)
    assert found.metadata.source_type == TRAINED
    assert (found.metadata.ai_system, found.metadata.ai_system_version) == ("safelight / mini", "0.1.0")
    assert found.metadata.aigc is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "GIF"])
def test_a_picture_without_marks_says_nothing(kind: str, signer: Signer) -> None:
    found = report(saved(NOISE, kind), signer.context)
    assert found.signature.state == "absent"
    assert found.metadata == type(found.metadata)()


@pytest.mark.parametrize("kind", FORMATS)
def test_chinas_label_is_read_from_xmp_and_from_a_text_chunk(kind: Format, signer: Signer) -> None:
    policy = Policy(profiles=frozenset({"cn"}), producer="ACME")
    label = report(picture(kind, policy=policy), signer.context).metadata.aigc
    assert label
    assert (label["Label"], label["ContentProducer"], label["ProduceID"]) == ("1", "ACME", NOW.uid)
    if kind == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text("AIGC", '{"Label":"2"}')
        assert report(saved(NOISE, "PNG", pnginfo=info), signer.context).metadata.aigc == {"Label": "2"}
        info.add_text("AIGC", "[" * 100_000)
        assert report(saved(NOISE, "PNG", pnginfo=info), signer.context).metadata.aigc is None


def test_other_programs_write_xmp_as_attributes(signer: Signer) -> None:
    kind = SOURCE_TYPES + "digitalCapture"
    for quote in "\"'":
        packet = f"<rdf:Description\n  Iptc4xmpExt:DigitalSourceType={quote}{kind}{quote} x:y='z'/>"
        assert report(saved(NOISE, "JPEG", xmp=packet.encode()), signer.context).metadata.source_type == kind


def test_a_picture_signed_elsewhere_is_whole_but_untrusted(signer: Signer) -> None:
    found = report(signed(signer), make_context(b"")).signature
    assert found.state == "untrusted"
    assert found.reasons == ("signingCredential.untrusted: signing certificate untrusted",)
    assert report(signed(signer), make_context(issue("ACME root", ca=True).pem)).signature.state == "untrusted"


def test_a_signature_is_not_for_another_picture(signer: Signer) -> None:
    """As when the manifest is copied into another file."""
    data = signed(signer)
    start = data.index(b"caBX") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    other = saved(Image.new("RGB", NOISE.size), "PNG")
    header = 8 + 25
    found = report(other[:header] + data[start:end] + other[header:], signer.context).signature
    assert found.state == "invalid"
    assert "assertion.dataHash.mismatch" in found.reasons[0]


def state_of(data: bytes, signer: Signer) -> str:
    try:
        return report(data, signer.context).signature.state
    except InvalidImage:
        return "no picture"


def flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 0xFF
    return bytes(changed)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:.*data larger than file")
@pytest.mark.parametrize("kind", FORMATS)
def test_no_byte_of_the_picture_or_its_metadata_can_change_unnoticed(kind: Format, signer: Signer) -> None:
    made = sign(picture(kind), MADE, signer)
    start = made.data.index(made.manifest[:64])
    end = start + len(made.manifest)
    assert made.data[start:end] == made.manifest
    # C2PA's hash leaves out the header around the manifest, and in AVIF the box `ftyp` before it.
    before = 0 if kind == "avif" else start - 20
    covered = [*range(0, before, 29), *range(end, len(made.data), 29)]
    assert len(covered) > 150
    unnoticed = [place for place in covered if state_of(flipped(made.data, place), signer) == "valid"]
    assert unnoticed == []


@pytest.mark.parametrize("kind", FORMATS)
def test_no_statement_of_the_manifest_can_change_unnoticed(kind: Format, signer: Signer) -> None:
    data = signed(signer, kind)
    words = [b"trainedAlgorithmicMedia", b"c2pa.created", b"2026-12-02T10", b"modelName", b"mini", b"0123456789ab"]
    words += [b"safelight development certificate", b"org.safelight.spec_digest", b"c2pa.ai-disclosure"]
    start = data.index(b"jumb")
    for word in words:
        place = data.index(word, start) + 3
        assert state_of(flipped(data, place), signer) in ("invalid", "no picture"), word


@pytest.mark.parametrize("kind", FORMATS)
def test_what_follows_the_end_of_a_picture_is_noticed(kind: Format, signer: Signer) -> None:
    assert state_of(signed(signer, kind) + b"PK\3\4more", signer) in ("invalid", "no picture")


def test_pixels_without_their_marks_say_nothing(signer: Signer) -> None:
    """As after a screenshot: this is what the watermark is for."""
    import io

    with Image.open(io.BytesIO(signed(signer))) as image:
        found = report(saved(image.convert("RGB"), "PNG"), signer.context)
    assert (found.signature.state, found.metadata.source_type) == ("absent", "")


def test_a_file_that_is_no_picture_is_refused(signer: Signer) -> None:
    for data in (b"", b"hello", plain()[:20], b"\0\0\0\x18ftypheic"):
        with pytest.raises(InvalidImage):
            report(data, signer.context)


def test_the_format_is_told_by_the_bytes(signer: Signer) -> None:
    assert [report(signed(signer, kind), signer.context).mime for kind in FORMATS] == [
        "image/png",
        "image/jpeg",
        "image/webp",
        "image/avif",
    ]
