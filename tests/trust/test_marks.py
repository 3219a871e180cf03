import json
from dataclasses import replace

import pytest
from tests.trust.pictures import APPLE, CHANGED, EDITED, ENLARGED, MENDED, NOW, SHARPENED, VARIED

from safelight.trust.facts import COMPOSITE_TRAINED, SOURCE_TYPES, TRAINED, public_name
from safelight.trust.marks import marks
from safelight.trust.policy import Policy

EU, CN = Policy(), Policy(profiles=frozenset({"cn"}), producer="ACME")
CAMERA = SOURCE_TYPES + "digitalCapture"
SOURCE_TYPE = "Iptc4xmpExt:DigitalSourceType"


def test_the_elements_have_iptcs_names() -> None:
    assert marks(APPLE, NOW, EU) == {
        "Iptc4xmpExt:DigitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
        "Iptc4xmpExt:AISystemUsed": "safelight / mini",
        "Iptc4xmpExt:AISystemVersionUsed": "0.1.0",
    }


@pytest.mark.parametrize("spec", [CHANGED, MENDED, EDITED])
def test_a_picture_that_was_changed_is_a_composite(spec: object) -> None:
    assert marks(spec, NOW, EU)[SOURCE_TYPE] == COMPOSITE_TRAINED


def test_a_variation_has_no_pixel_of_its_picture() -> None:
    assert marks(VARIED, NOW, EU)[SOURCE_TYPE] == TRAINED


def test_an_enlarged_picture_is_what_it_was() -> None:
    for spec, name in ((ENLARGED, "safelight"), (SHARPENED, "safelight / realesrgan-x4plus")):
        for kind in (TRAINED, COMPOSITE_TRAINED):
            own = marks(spec, replace(NOW, own_source=True, source_type=kind), EU)
            assert (own[SOURCE_TYPE], own["Iptc4xmpExt:AISystemUsed"]) == (kind, name)


def test_a_network_makes_an_upload_a_composite_and_lanczos_adds_nothing() -> None:
    for kind in ("", CAMERA):
        assert marks(SHARPENED, replace(NOW, source_type=kind), EU)[SOURCE_TYPE] == COMPOSITE_TRAINED
    assert marks(ENLARGED, replace(NOW, source_type=CAMERA), EU) == {SOURCE_TYPE: CAMERA}
    assert marks(ENLARGED, NOW, EU) == {}


def test_chinas_label_has_its_seven_keys_in_order() -> None:
    [(name, text)] = marks(APPLE, NOW, CN).items()
    assert name == "TC260:AIGC"
    assert text == (
        '{"Label":"1","ContentProducer":"ACME","ProduceID":"00112233aabbccdd","ReservedCode1":"",'
        '"ContentPropagator":"ACME","PropagateID":"00112233aabbccdd","ReservedCode2":""}'
    )
    assert list(json.loads(text)) == [
        "Label", "ContentProducer", "ProduceID", "ReservedCode1", "ContentPropagator", "PropagateID", "ReservedCode2",
    ]  # fmt: skip


def test_chinas_label_is_only_on_what_a_model_made() -> None:
    assert marks(ENLARGED, replace(NOW, source_type=CAMERA), CN) == {}
    assert "TC260:AIGC" in marks(ENLARGED, replace(NOW, source_type=TRAINED), CN)


def test_profiles_add_up_and_none_is_none() -> None:
    both = marks(APPLE, NOW, Policy(profiles=frozenset({"eu", "cn"}), producer="ACME"))
    assert both == marks(APPLE, NOW, EU) | marks(APPLE, NOW, CN)
    assert marks(APPLE, NOW, Policy(profiles=frozenset())) == {}


def test_marks_name_no_prompt() -> None:
    assert "apple" not in str(marks(APPLE, NOW, Policy(profiles=frozenset({"eu", "cn"}), producer="ACME")))


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("mini", "mini"),
        ("brand@production", "brand@production"),
        ("org/name@main", "org/name@main"),
        ("/home/ann/models/portraits.safetensors", "portraits"),
        ("./stable-diffusion-v1-5", "stable-diffusion-v1-5"),
        ("~/m/x", "x"),
        (r"C:\Users\ann\models\portraits.safetensors", "portraits"),
        ("v1.5", "v1.5"),
        ("/", "model"),
    ],
)
def test_folders_of_a_machine_are_not_told(name: str, public: str) -> None:
    assert public_name(name) == public
