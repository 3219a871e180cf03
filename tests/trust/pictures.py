"""Pictures to sign, specs of every task, and what is true of them."""

import json
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import c2pa
from PIL import Image
from tests.assets.specs import DIGEST, FROM_MASK, FROM_PICTURE, PLAIN

from safelight.assets.encode import Encoding, Format, encode
from safelight.spec import Edit, ImageToImage, Inpaint, TextToImage, Upscale, Variation
from safelight.trust.facts import Facts
from safelight.trust.ingredients import Kept, keep
from safelight.trust.marks import marks
from safelight.trust.policy import Policy
from safelight.trust.verify import Report, verify

FORMATS: list[Format] = ["png", "jpeg", "webp", "avif"]
MIME = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "avif": "image/avif"}
POLICY = Policy()
NOW = Facts(version="0.1.0", when=datetime(2026, 12, 2, 10, 30, tzinfo=UTC), uid="00112233aabbccdd")
APPLE = TextToImage(**PLAIN)
CHANGED = ImageToImage(**PLAIN | FROM_PICTURE)
MENDED = Inpaint(**PLAIN | FROM_MASK)
EDITED = Edit(**PLAIN | {"init": DIGEST, "fit": "crop", "image_guidance": 1.5})
VARIED = Variation(**PLAIN | {"init": DIGEST})
ENLARGED = Upscale(init=DIGEST, scale=2.0)
SHARPENED = Upscale(init=DIGEST, scale=2.0, method="realesrgan-x4plus")
NOISE = Image.effect_noise((96, 64), 60).convert("RGB")


def picture(kind: Format = "png", spec: Any = APPLE, facts: Facts = NOW, policy: Policy = POLICY) -> bytes:
    """An encoded picture with its marks, as it is before it is signed."""
    # A copy: Pillow keeps the options of `save` at the image meanwhile, and threads would take one another's.
    return encode(NOISE.copy(), spec, Encoding(format=kind), version="0.1.0", marks=marks(spec, facts, policy))


def plain(kind: str = "PNG") -> bytes:
    """A picture without any metadata."""
    file = BytesIO()
    NOISE.copy().save(file, kind)
    return file.getvalue()


def read_with_c2pa(data: bytes, context: Any = None) -> dict[str, Any]:
    """What c2pa's own Reader says."""
    with c2pa.Reader("", BytesIO(data), context=context) as reader:
        return json.loads(reader.json())


def active(found: dict[str, Any]) -> dict[str, Any]:
    return found["manifests"][found["active_manifest"]]


def kept(data: bytes, context: Any) -> Kept:
    return keep(data, context, max_pixels=10**7, max_file_bytes=10**7)


def report(data: bytes, context: Any, **more: Any) -> Report:
    return verify(data, context, max_pixels=10**7, max_file_bytes=10**7, **more)
