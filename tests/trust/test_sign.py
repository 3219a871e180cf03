"""Signing, read back with c2pa's own Reader."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tests.assets.specs import DIGEST
from tests.trust.pictures import (
    APPLE,
    CHANGED,
    EDITED,
    ENLARGED,
    FORMATS,
    MENDED,
    MIME,
    NOW,
    POLICY,
    SHARPENED,
    VARIED,
    active,
    kept,
    picture,
    plain,
    read_with_c2pa,
    report,
)
from tests.trust.test_manifest import EVERYTHING, KNOWN, MARKED

from safelight.assets.encode import Format
from safelight.assets.read_metadata import read_metadata
from safelight.errors import SafelightError, SigningFailed
from safelight.trust.credentials import trusted_roots
from safelight.trust.facts import COMPOSITE_TRAINED, SOURCE_TYPES, TRAINED
from safelight.trust.manifest import Manifest, composite, manifest
from safelight.trust.sign import sign
from safelight.trust.signer import Signer, make_context
from safelight.trust.verify import actions_of

MADE = manifest(APPLE, NOW, POLICY)
CAPTURED = SOURCE_TYPES + "digitalCapture"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_signed_picture_is_trusted_by_c2pas_own_reader(kind: Format, signer: Signer) -> None:
    signed = sign(picture(kind), MADE, signer)
    found = read_with_c2pa(signed.data, make_context(signer.credentials.root_pem))
    assert found["validation_state"] == "Trusted"
    assert active(found)["signature_info"]["common_name"].startswith("safelight development certificate - not a")
    actions = actions_of(active(found))
    assert [(action["action"], action["digitalSourceType"]) for action in actions] == [("c2pa.created", TRAINED)]
    assert (signed.timestamp, signed.why_missed) == ("off", "")


@pytest.mark.parametrize("kind", FORMATS)
def test_everything_else_in_the_file_is_read_as_before(kind: Format, signer: Signer) -> None:
    before = picture(kind)
    signed = sign(before, MADE, signer)
    read = [read_metadata(data, max_pixels=10**6, max_file_bytes=10**6) for data in (before, signed.data)]
    assert read[0] == read[1]
    assert read[1].spec == APPLE
    assert report(signed.data, signer.context).metadata.source_type == TRAINED


@pytest.mark.parametrize("kind", FORMATS)
def test_a_signature_takes_at_most_six_kilobytes(kind: Format, signer: Signer) -> None:
    signed = sign(picture(kind), manifest(APPLE, replace(KNOWN, origins={}), POLICY), signer)
    assert len(signed.data) - len(picture(kind)) <= 6000  # 4.4 kB were measured


def test_to_the_rest_of_the_world_our_root_is_unknown(signer: Signer) -> None:
    found = read_with_c2pa(sign(picture(), MADE, signer).data)
    assert found["validation_state"] == "Valid"
    [failure] = found["validation_results"]["activeManifest"]["failure"]
    assert failure["code"] == "signingCredential.untrusted"


SPECS = {
    "changed": (CHANGED, ["c2pa.opened", "c2pa.edited"]),
    "mended": (MENDED, ["c2pa.opened", "c2pa.edited"]),
    "edited": (EDITED, ["c2pa.opened", "c2pa.edited"]),
    "varied": (VARIED, ["c2pa.created"]),
    "enlarged": (ENLARGED, ["c2pa.opened", "c2pa.resized.proportional"]),
    "sharpened": (SHARPENED, ["c2pa.opened", "c2pa.resized.proportional", "c2pa.enhanced", "c2pa.edited"]),
}


@pytest.mark.parametrize("given", ["a file", "what was kept of it", "a file without a manifest"])
@pytest.mark.parametrize("what", SPECS)
def test_every_task_signs_and_names_what_it_started_from(what: str, given: str, signer: Signer) -> None:
    spec, actions = SPECS[what]
    start = sign(picture(), MADE, signer).data
    archive = kept(start, signer.context).archive
    assert archive
    file = {"a file": start, "what was kept of it": archive, "a file without a manifest": plain()}[given]
    signed = sign(picture(), manifest(spec, MARKED, POLICY), signer, pictures={DIGEST: file})
    found = report(signed.data, signer.context).signature
    assert (found.state, found.reasons) == ("valid", ())
    assert list(found.actions) == [*actions, "c2pa.watermarked.unbound"]
    source = found.ingredients[-1]
    assert source.relationship == ("inputTo" if what == "varied" else "parentOf")
    assert source.signature == ("absent" if given == "a file without a manifest" else "valid")


def test_a_region_that_was_inpainted_is_in_the_file(signer: Signer) -> None:
    made = manifest(MENDED, replace(NOW, region=(8, 16, 72, 48)), POLICY)
    signed = sign(picture(), made, signer, pictures={DIGEST: plain()})
    edited = active(read_with_c2pa(signed.data, signer.context))["assertions"][0]["data"]["actions"][1]
    shape = edited["changes"][0]["region"][0]["shape"]
    assert (shape["origin"], shape["width"], shape["height"]) == ({"x": 8, "y": 16}, 64, 32)


def test_weights_and_pictures_that_led_it_are_ingredients(signer: Signer) -> None:
    made = manifest(EVERYTHING, KNOWN, POLICY)
    signed = sign(picture(), made, signer, pictures={DIGEST: plain(), "c" * 64: plain("JPEG")})
    found = active(read_with_c2pa(signed.data, signer.context))
    assert [(one["title"], one["relationship"]) for one in found["ingredients"]] == [
        ("mini", "inputTo"),
        ("refiner refiner", "inputTo"),
        ("autoencoder fine", "inputTo"),
        ("text encoder long", "inputTo"),
        ("LoRA ink", "inputTo"),
        ("embedding style", "inputTo"),
        ("control canny", "inputTo"),
        ("IP-Adapter ip", "inputTo"),
        ("image encoder clip", "inputTo"),
        ("source picture", "parentOf"),
        ("control picture", "inputTo"),
        ("picture prompt", "inputTo"),
    ]
    model = found["ingredients"][0]
    assert model["informational_URI"] == "https://models.example.com/mini"
    assert model["description"].startswith("sha256:0123456789abcdef")
    assert "trained from sha256:aaaa" in model["description"]
    opened, edited, _watermarked = found["assertions"][0]["data"]["actions"]
    assert len(opened["parameters"]["ingredients"]) == 1
    assert len(edited["parameters"]["ingredients"]) == 11


def test_a_prompt_that_may_be_signed_is_in_the_file(signer: Signer) -> None:
    made = manifest(APPLE, replace(NOW, full_metadata=True), replace(POLICY, prompt=True))
    assert b"a red apple" not in sign(plain(), MADE, signer).data
    signed = sign(plain(), made, signer)
    assert b"a red apple" in signed.data
    assert report(signed.data, signer.context).signature.state == "valid"


def test_a_chain_of_three_generations_is_verified_to_the_first(signer: Signer) -> None:
    data, sizes = sign(picture(), MADE, signer).data, []
    for _ in range(3):
        child = sign(picture(), manifest(CHANGED, NOW, POLICY), signer, pictures={DIGEST: data}).data
        sizes.append(len(child) - len(data))
        data = child
    found = read_with_c2pa(data, signer.context)
    assert found["validation_state"] == "Trusted"
    assert len(found["manifests"]) == 4
    chain, label = [], found["active_manifest"]
    while label:
        chain.append(found["manifests"][label]["assertions"][0]["data"]["actions"][0]["action"])
        parents = [one for one in found["manifests"][label]["ingredients"] if one["relationship"] == "parentOf"]
        label = parents[0]["active_manifest"] if parents else None
    assert chain == ["c2pa.opened"] * 3 + ["c2pa.created"]
    assert max(sizes) <= 16_000


@pytest.mark.parametrize("through", ["the file", "what was kept of it"])
def test_a_tampered_parent_is_seen_in_its_child(through: str, signer: Signer) -> None:
    parent = bytearray(sign(picture(), MADE, signer).data)
    parent[parent.rindex(b"IDAT") + 40] ^= 1
    file = bytes(parent) if through == "the file" else kept(bytes(parent), signer.context).archive
    assert file
    child = sign(picture(), manifest(CHANGED, NOW, POLICY), signer, pictures={DIGEST: file})
    found = report(child.data, signer.context).signature
    assert found.state == "valid"
    [source] = [one for one in found.ingredients if one.relationship == "parentOf"]
    assert source.signature == "invalid"
    assert "assertion.dataHash.mismatch" in source.reasons[0]


def test_a_picture_in_both_roles_is_named_twice(signer: Signer) -> None:
    control = EVERYTHING.controls[0].model_copy(update={"image": DIGEST})
    spec = CHANGED.model_copy(update={"controls": (control,)})
    signed = sign(picture(), manifest(spec, NOW, POLICY), signer, pictures={DIGEST: plain()})
    found = report(signed.data, signer.context).signature
    assert [one.relationship for one in found.ingredients] == ["inputTo", "inputTo", "parentOf", "inputTo"]


def test_a_grid_names_its_pictures(signer: Signer) -> None:
    cells = {"a" * 64: sign(picture(), MADE, signer).data, "b" * 64: plain()}
    made = composite(list(cells), [TRAINED, COMPOSITE_TRAINED], NOW, POLICY)
    found = report(sign(plain(), made, signer, pictures=cells).data, signer.context).signature
    assert (found.state, found.actions) == ("valid", ("c2pa.created", "c2pa.placed"))
    assert [(one.relationship, one.signature) for one in found.ingredients] == [
        ("componentOf", "valid"),
        ("componentOf", "absent"),
    ]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_manifest_in_a_sidecar_leaves_the_picture_as_it_is(kind: Format, signer: Signer) -> None:
    data = picture(kind)
    signed = sign(data, MADE, signer, detached=True)
    assert signed.data == data
    assert report(data, signer.context).signature.state == "absent"
    assert report(data, signer.context, sidecar=signed.manifest).signature.state == "valid"
    changed = picture(kind, facts=replace(NOW, version="0.2.0"))
    assert report(changed, signer.context, sidecar=signed.manifest).signature.state == "invalid"


def test_a_parent_that_is_not_given_is_named_and_nothing_is_signed(signer: Signer) -> None:
    with pytest.raises(SigningFailed, match="its manifest names its source picture, whose file was not given"):
        sign(picture(), manifest(CHANGED, NOW, POLICY), signer)


def test_a_parent_with_a_mangled_manifest_does_not_stop_its_child(signer: Signer) -> None:
    """Anybody may send such a file."""
    whole = sign(picture("jpeg"), MADE, signer).data
    start = whole.index(b"jumb")
    outcomes: set[str] = set()
    for place in range(start, start + 600, 7):
        parent = bytearray(whole)
        parent[place] ^= 0xFF
        found = kept(bytes(parent), signer.context)
        outcomes.add(found.signature)
        given = {DIGEST: found.archive or plain()}
        signed = sign(picture(), manifest(CHANGED, NOW, POLICY), signer, pictures=given)
        child = report(signed.data, signer.context).signature
        assert child.state == "valid"
        assert child.ingredients[-1].signature == (found.signature if found.archive else "absent")
    assert outcomes == {"invalid", "absent", "valid"}, "the lengths of JUMBF's boxes are not signed"


def test_what_a_sent_picture_says_of_itself_is_kept(signer: Signer) -> None:
    told = replace(NOW, source_type=CAPTURED)
    for data, kind in (
        (plain(), ""),
        (picture("jpeg", ENLARGED, told), CAPTURED),
        (sign(picture("webp", CHANGED), MADE, signer).data, TRAINED),
    ):
        assert kept(data, signer.context).source_type == kind
    tampered = bytearray(sign(picture("webp", CHANGED), MADE, signer).data)
    tampered[100] ^= 1
    found = kept(bytes(tampered), signer.context)
    assert (found.signature, found.source_type) == ("invalid", COMPOSITE_TRAINED)
    assert "assertion.dataHash.mismatch" in found.reasons[0]


def test_a_manifest_that_c2pa_refuses_gives_no_picture(signer: Signer) -> None:
    created = {"action": "c2pa.created"}  # C2PA wants its source type
    broken = Manifest(
        definition={"assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}], "ingredients": []}
    )
    with pytest.raises(SigningFailed, match="is not given out unsigned"):
        sign(picture(), broken, signer)


def test_what_is_no_picture_is_not_signed(signer: Signer) -> None:
    for data in (b"", b"hello", b"GIF89a"):
        with pytest.raises(SafelightError):
            sign(data, MADE, signer)


def test_many_threads_sign_with_one_signer(signer: Signer) -> None:
    """c2pa's signer and context are shared without a lock of ours."""

    def work(number: int) -> bool:
        kind = FORMATS[number % 4]
        made = manifest(CHANGED, NOW, POLICY) if number % 3 else MADE
        signed = sign(picture(kind), made, signer, pictures={DIGEST: plain()})
        return report(signed.data, signer.context).signature.state == "valid"

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(96)))


def test_only_the_root_is_needed_to_verify(signer: Signer) -> None:
    assert trusted_roots(signer.credentials.folder) == signer.credentials.root_pem
    assert MIME.keys() == set(FORMATS)
