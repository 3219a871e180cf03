import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.assets.specs import APPLE, DIGEST, specs

from safelight.assets.encode import Detail, Encoding, Format, encode
from safelight.assets.infotext import write_infotext
from safelight.assets.read_metadata import Metadata, read_metadata
from safelight.errors import UnsupportedOption
from safelight.imaging import xmp
from safelight.imaging.open_image import open_image
from safelight.spec import Denoised, Upscale

FORMATS: list[Format] = ["png", "jpeg", "webp", "avif"]
PICTURE = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
UPSCALE = Upscale(init=DIGEST, scale=2.0)
LABEL = '{"Label":"1","ContentProducer":"<ACME&Co>"}'
MARKS = {"Iptc4xmpExt:DigitalSourceType": "http://cv.iptc.org/x/trainedAlgorithmicMedia", "TC260:AIGC": LABEL}


def read(data: bytes) -> Metadata:
    return read_metadata(data, max_pixels=10**8, max_file_bytes=10**8)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_spec_is_restored_from_its_image_file(kind: Format) -> None:
    said = read(encode(PICTURE, APPLE, Encoding(format=kind), version="0.1.0"))
    assert (said.producer, said.prompt, said.negative_prompt) == ("safelight", "a red apple", "blurry")
    assert said.spec == APPLE
    assert said.settings["sampler"] == "DPM++ 2M Karras"
    assert said.raw["parameters"] == write_infotext(APPLE, version="0.1.0")
    record = json.loads(said.raw["safelight"])
    assert record.pop("spec") == APPLE.model_dump(mode="json")
    assert record == {
        "version": "0.1.0",
        "spec_digest": APPLE.digest(),
        "model_digest": APPLE.model_digest,
        "determinism": "fast",
    }


@settings(max_examples=60)
@given(specs, st.sampled_from(FORMATS))
def test_every_spec_survives_a_round_trip(spec: Denoised, kind: Format) -> None:
    assert read(encode(PICTURE, spec, Encoding(format=kind), version="1")).spec == spec


@pytest.mark.parametrize("kind", FORMATS)
def test_minimal_metadata_has_the_digest_and_no_prompt(kind: Format) -> None:
    data = encode(PICTURE, APPLE, Encoding(format=kind, metadata="minimal"), version="0.1.0")
    said = read(data)
    assert (said.producer, said.spec, said.prompt) == ("safelight", None, "")
    assert json.loads(said.raw["safelight"])["spec_digest"] == APPLE.digest()
    for word in ("apple", "blurry"):
        assert word.encode() not in data
        assert word.encode("utf-16-be") not in data


@pytest.mark.parametrize("kind", FORMATS)
def test_detail_none_writes_no_metadata(kind: Format) -> None:
    data = encode(PICTURE, APPLE, Encoding(format=kind, metadata="none"), version="0.1.0")
    assert read(data) == Metadata(producer="unknown", raw={})
    for word in (b"safelight", b"Exif", b"xmp", b"apple"):
        assert word not in data


@pytest.mark.parametrize("metadata", ["full", "minimal", "none"])
@pytest.mark.parametrize("kind", FORMATS)
def test_marks_are_in_every_file_whatever_its_metadata(kind: Format, metadata: Detail) -> None:
    data = encode(PICTURE, APPLE, Encoding(format=kind, metadata=metadata), version="1", marks=MARKS)
    with Image.open(io.BytesIO(data)) as image:
        packet = image.info["xmp"].decode()
        assert {name: xmp.element(packet, name) for name in MARKS} == MARKS
        assert image.info.get("AIGC") == (LABEL if kind == "png" else None)
    if metadata == "none":
        assert "safelight" not in packet
        assert "apple" not in packet


@pytest.mark.parametrize("kind", FORMATS)
def test_the_prompt_is_in_iptcs_field_with_full_metadata_alone(kind: Format) -> None:
    for metadata, prompt in (("full", "a red apple"), ("minimal", None), ("none", None)):
        data = encode(PICTURE, APPLE, Encoding(format=kind, metadata=metadata), version="1", marks=MARKS)
        with Image.open(io.BytesIO(data)) as image:
            assert xmp.element(image.info["xmp"].decode(), "Iptc4xmpExt:AIPromptInformation") == prompt


@pytest.mark.parametrize("kind", FORMATS)
def test_an_upscaled_picture_keeps_its_spec_too(kind: Format) -> None:
    said = read(encode(PICTURE, UPSCALE, Encoding(format=kind), version="1"))
    assert (said.producer, said.spec, said.prompt) == ("safelight", UPSCALE, "")


@pytest.mark.parametrize("kind", FORMATS)
def test_the_longest_prompts_are_kept_where_the_format_can(kind: Format) -> None:
    spec = APPLE.model_copy(update={"prompt": "苹" * 20_000, "negative_prompt": "x" * 20_000})
    said = read(encode(PICTURE, spec, Encoding(format=kind), version="1"))
    assert said.spec == (None if kind == "jpeg" else spec), "a JPEG falls back to the minimum"
    assert json.loads(said.raw["safelight"])["spec_digest"] == spec.digest()


def test_a_jpeg_with_too_long_a_prompt_keeps_its_marks() -> None:
    spec = APPLE.model_copy(update={"prompt": "苹" * 20_000})
    with Image.open(io.BytesIO(encode(PICTURE, spec, Encoding(format="jpeg"), version="1", marks=MARKS))) as image:
        packet = image.info["xmp"].decode()
    assert {name: xmp.element(packet, name) for name in MARKS} == MARKS


def test_the_pixels_are_kept_by_png_and_nearly_by_the_others() -> None:
    for kind in FORMATS:
        data = encode(PICTURE, APPLE, Encoding(format=kind, quality=95), version="1")
        back = open_image(data, max_pixels=10**6, max_file_bytes=10**6, trusted=True)
        errors = [abs(a - b) for a, b in zip(PICTURE.tobytes(), back.tobytes(), strict=True)]
        # A smooth gradient at quality 95: measured 2 at most, for WebP.
        assert max(errors) <= (0 if kind == "png" else 4)


def test_lower_quality_is_a_smaller_file() -> None:
    noise = Image.effect_noise((64, 64), 60).convert("RGB")
    for kind in ("jpeg", "webp", "avif"):
        sizes = [len(encode(noise, APPLE, Encoding(format=kind, quality=q), version="1")) for q in (10, 50, 95)]
        assert sizes == sorted(sizes)


def test_the_same_picture_and_spec_are_the_same_bytes() -> None:
    for kind in FORMATS:
        assert len({encode(PICTURE, APPLE, Encoding(format=kind), version="1") for _ in range(3)}) == 1


def test_a_jpeg_of_a_transparent_picture_is_white_behind_it() -> None:
    data = encode(Image.new("RGBA", (16, 16)), APPLE, Encoding(format="jpeg"), version="1")
    assert open_image(data, max_pixels=1000, max_file_bytes=10**5).getpixel((8, 8)) == (255, 255, 255)


def test_sizes_beyond_the_format_are_refused() -> None:
    with pytest.raises(UnsupportedOption, match="at most 16383 pixels a side; use png"):
        encode(Image.new("RGB", (16_384, 1)), UPSCALE, Encoding(format="webp"), version="1")
    with pytest.raises(UnsupportedOption, match="at most 32768 pixels a side; use png"):
        encode(Image.new("RGB", (32_769, 1)), UPSCALE, Encoding(format="avif"), version="1")
    largest = encode(Image.new("RGB", (32_768, 1)), UPSCALE, Encoding(format="avif"), version="1")
    assert read(largest).spec == UPSCALE
    with pytest.raises(UnsupportedOption, match="not between 1 and 100"):
        encode(PICTURE, APPLE, Encoding(format="jpeg", quality=0), version="1")
