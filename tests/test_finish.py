"""The last stage: what a file says of the weights behind it; one file, however often it is finished."""

import json
from pathlib import Path
from typing import Any

from PIL import Image
from tests.assets.specs import APPLE
from tests.models.registry.files import write_lora

from safelight.assets.encode import Encoding
from safelight.finish import finish
from safelight.models.registry.registry import open_registry
from safelight.models.registry.version import Lineage, Parent
from safelight.settings import Settings
from safelight.spec import TextToImage
from safelight.spec.effects import PinnedLora
from safelight.studio import Studio, open_studio
from safelight.trust.verify import verify

PICTURE = Image.linear_gradient("L").convert("RGB")


def manifest_of(path: Path, studio: Studio) -> dict[str, Any]:
    assert studio.signer
    found = verify(path.read_bytes(), studio.signer.context, max_pixels=10**6, max_file_bytes=10**7).signature
    assert found.state == "valid"
    return found.manifest["manifests"][found.manifest["active_manifest"]]


def test_the_origin_of_registered_weights_is_signed(home: Path, tmp_path: Path) -> None:
    settings = Settings(home=home)
    lineage = Lineage(parents=(Parent(name="sd15", digest="b" * 64),), dataset_digest="d" * 64)
    with open_registry(settings) as registry:
        ink = registry.add(write_lora(tmp_path / "ink.safetensors"), lineage=lineage)
    spec = TextToImage.model_validate(
        APPLE.model_dump() | {"loras": (PinnedLora(name="ink", digest=ink.digest),), "width": 256, "height": 256}
    )
    with open_studio(settings) as studio:
        finished = finish(PICTURE, spec, studio, Encoding())
        ingredients = {one["title"]: one for one in manifest_of(finished.asset.path, studio)["ingredients"]}
    assert ingredients["LoRA ink"]["description"] == (
        f"sha256:{ink.digest} trained from sha256:{'b' * 64} on data set sha256:{'d' * 64}"
    )
    assert "trained from" not in ingredients["mini"]["description"], "nothing is said of what nobody registered"


def test_a_place_in_a_request_has_one_picture_and_the_ledger_one_row(home: Path) -> None:
    spec = TextToImage.model_validate(APPLE.model_dump() | {"width": 256, "height": 256})
    with open_studio(Settings(home=home, trust_watermark=True)) as studio:
        first, again = (finish(PICTURE, spec, studio, Encoding(), tenant="ann", place="job 1") for _ in range(2))
        assert first.asset == again.asset
        assert (first.new, again.new) == (True, False)
        assert studio.ledger
        [row] = studio.ledger.find(first.uid)
    assert row.record["asset_id"] == first.asset.id
    assert row.record["pixels_before"] == first.pixels
    assert row.record["pixels_after"] != first.pixels
    assert row.record["marks"]["watermark"] == "marked"
    assert "apple" not in json.dumps(dict(row.record))
