"""Manifests against stored ones; `python -m tests.trust.test_manifest` writes them anew, to be read before a commit."""

import json
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from tests.assets.specs import DIGEST, FROM_PICTURE, PLAIN
from tests.trust.pictures import APPLE, CHANGED, EDITED, ENLARGED, MENDED, NOW, POLICY, SHARPENED, VARIED

from safelight.spec import ImageToImage, TextToImage, Upscale
from safelight.spec.effects import PinnedControl, PinnedLora, PinnedPicturePrompt
from safelight.spec.parts import PinnedEmbedding, PinnedPart, PinnedRefiner
from safelight.trust.facts import COMPOSITE_TRAINED, TRAINED, Origin, WatermarkFact
from safelight.trust.manifest import Manifest, composite, manifest

GOLDEN = Path(__file__).with_name("manifests.json")
A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
EVERYTHING = ImageToImage(
    **PLAIN
    | FROM_PICTURE
    | {
        "loras": (PinnedLora(name="/home/ann/loras/ink.safetensors", digest=A),),
        "controls": (PinnedControl(model="canny", digest=B, image=C, hint=D, preprocessor="canny"),),
        "picture_prompts": (PinnedPicturePrompt(model="ip", digest=B, image=C, encoder="clip", encoder_digest=D),),
        "embeddings": (PinnedEmbedding(name="style", digest=C),),
        "vae": PinnedPart(name="fine", digest=D),
        "text_encoder": PinnedPart(name="long", digest=C),
        "refiner": PinnedRefiner(model="refiner", digest=B),
    }
)
MARKED = replace(NOW, watermark=WatermarkFact(alg="safelight.ss.1", key_id="k1"), interactive=True)
KNOWN = replace(
    MARKED,
    torch_version="2.13.0",
    origins={
        PLAIN["model_digest"]: Origin(trained_from=(A, B), data_set=C, url="https://models.example.com/mini"),
        A: Origin(trained_from=(PLAIN["model_digest"],)),
    },
)


def manifests() -> dict[str, Manifest]:
    return {
        "text-to-image": manifest(APPLE, MARKED, POLICY),
        "text-to-image, unattended and not watermarked": manifest(APPLE, NOW, POLICY),
        "image-to-image": manifest(CHANGED, MARKED, POLICY),
        "image-to-image with everything": manifest(EVERYTHING, KNOWN, POLICY),
        "inpaint": manifest(MENDED, replace(MARKED, region=(8, 16, 72, 48)), POLICY),
        "edit": manifest(EDITED, MARKED, POLICY),
        "variation": manifest(VARIED, MARKED, POLICY),
        "upscale by lanczos": manifest(ENLARGED, replace(MARKED, own_source=True, source_type=TRAINED), POLICY),
        "upscale by a network": manifest(SHARPENED, MARKED, POLICY),
        "prompt, training and oversight": manifest(
            APPLE,
            replace(NOW, full_metadata=True),
            replace(POLICY, prompt=True, training="not-allowed", oversight="human_validated"),
        ),
        "grid": composite([A, B], [TRAINED, COMPOSITE_TRAINED], NOW, POLICY),
    }


def as_json(made: Manifest) -> dict[str, Any]:
    inputs = [asdict(given) for given in made.inputs]
    resources = {name: content.decode() for name, content in made.resources.items()}
    return {"definition": made.definition, "inputs": inputs, "resources": resources}


@pytest.mark.parametrize("name", manifests())
def test_the_manifest_is_the_stored_one(name: str) -> None:
    assert as_json(manifests()[name]) == json.loads(GOLDEN.read_text())[name]


def test_manifests_name_neither_prompt_nor_folders() -> None:
    for name, made in manifests().items():
        said = json.dumps(as_json(made))
        assert ("a red apple" in said) == (name == "prompt, training and oversight")
        assert "home" not in said
        assert "safetensors" not in said


@pytest.mark.parametrize(("prompt", "full"), [(True, False), (False, True)])
def test_the_prompt_needs_the_policy_and_the_caller(prompt: bool, full: bool) -> None:
    made = manifest(APPLE, replace(NOW, full_metadata=full), replace(POLICY, prompt=prompt))
    assert made == manifest(APPLE, NOW, POLICY)


def test_times_are_in_utc() -> None:
    there = replace(NOW, when=datetime(2026, 12, 2, 11, 30, 5, 999, tzinfo=timezone(timedelta(hours=1))))
    [action] = manifest(APPLE, there, POLICY).definition["assertions"][0]["data"]["actions"]
    assert action["when"] == "2026-12-02T10:30:05Z"


def test_a_grid_of_generated_pictures_alone_is_generated() -> None:
    made = composite([A, B], [TRAINED, TRAINED], NOW, POLICY)
    created = made.definition["assertions"][0]["data"]["actions"][0]
    assert created["digitalSourceType"] == TRAINED


def test_an_enlarged_upload_without_a_source_type_gets_none() -> None:
    assert "digitalSourceType" not in json.dumps(manifest(ENLARGED, NOW, POLICY).definition)


def test_a_network_of_ones_own_is_named_by_its_digest() -> None:
    spec = Upscale(init=DIGEST, scale=2.0, method="sharp", method_digest=A)
    made = manifest(spec, NOW, POLICY).definition
    assert made["ingredients"][0]["title"] == "upscaler sharp"
    assert made["assertions"][1]["data"]["modelIdentifier"] == f"urn:sha256:{A}"


def test_a_weak_watermark_says_so() -> None:
    weak = replace(NOW, watermark=WatermarkFact(alg="safelight.ss.1", key_id="k1", strength="weak"))
    [mark] = [one for one in manifest(APPLE, weak, POLICY).definition["assertions"] if "watermark" in one["label"]]
    assert mark["data"] == {"alg": "safelight.ss.1", "key_id": "k1", "asset": "00112233aabbccdd", "strength": "weak"}


def test_every_label_that_an_action_names_is_there() -> None:
    for made in manifests().values():
        labels = {one["label"] for one in made.definition["ingredients"]} | {one.label for one in made.inputs}
        actions = made.definition["assertions"][0]["data"]["actions"]
        named = {label for action in actions for label in action.get("parameters", {}).get("ingredientIds", ())}
        assert named == labels


def test_the_first_action_says_where_the_picture_begins() -> None:
    for spec, first in ((TextToImage(**PLAIN), "c2pa.created"), (VARIED, "c2pa.created"), (MENDED, "c2pa.opened")):
        assert manifest(spec, NOW, POLICY).definition["assertions"][0]["data"]["actions"][0]["action"] == first


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: as_json(made) for name, made in manifests().items()}, indent=1) + "\n")
