"""What others make of our files: a second C2PA verifier, exiftool, and readers of AUTOMATIC1111's `parameters`."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sd_parsers
from tests.trust.authority import issue, time_stamp_authority
from tests.trust.pictures import APPLE, FORMATS, MIME, NOW, POLICY, picture

from safelight.assets.encode import Format
from safelight.trust.credentials import own_credentials
from safelight.trust.manifest import manifest
from safelight.trust.policy import Policy
from safelight.trust.sign import sign
from safelight.trust.signer import Signer

MADE = manifest(APPLE, NOW, POLICY)
BOTH = Policy(profiles=frozenset({"eu", "cn"}), producer="ACME")


@pytest.fixture
def encypher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The verifier `encypher-c2pa`, which shares no code with c2pa; it would keep its answers in the user's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    import encypher_c2pa

    def verify(data: bytes, mime: str, roots: bytes) -> dict[str, Any]:
        found = encypher_c2pa.verify(
            data, mime, trust_pem=roots.decode(), tsa_trust_pem=roots.decode(), no_default_trust=True,
            telemetry=False, online=False,
        )  # fmt: skip
        return dict(found)

    return verify


@pytest.mark.parametrize("kind", FORMATS)
def test_a_second_verifier_finds_the_signature_valid(kind: Format, signer: Signer, encypher: Any) -> None:
    signed = sign(picture(kind), MADE, signer)
    said = encypher(signed.data, MIME[kind], signer.credentials.root_pem)
    assert (said["integrity"], said["trust"]["status"]) == ("valid", "valid_for_supplied_material")
    changed = bytearray(signed.data)
    changed[-40] ^= 1
    assert encypher(bytes(changed), MIME[kind], signer.credentials.root_pem)["integrity"] == "invalid"


@pytest.mark.needs("openssl")
def test_a_second_verifier_finds_the_time_stamp(tmp_path: Path, encypher: Any) -> None:
    root = issue("ACME root", ca=True)
    own = issue("ACME pictures", root)
    with time_stamp_authority(tmp_path, root) as tsa:
        credentials = own_credentials(tmp_path / "trust", own.pem + root.pem, own.key_pem)
        signed = sign(picture(), MADE, Signer(credentials, Policy(timestamp="required", timestamp_url=tsa.url)))
    said = encypher(signed.data, "image/png", root.pem)
    assert (said["integrity"], said["trust"]["status"]) == ("valid", "valid_for_supplied_material")
    assert "timeStamp.trusted" in json.dumps(said)


def exiftool(data: bytes, kind: Format, tmp_path: Path) -> dict[str, str]:
    path = tmp_path / f"picture.{kind}"
    path.write_bytes(data)
    found = subprocess.run(["exiftool", "-json", "-G", "-struct", path], check=True, capture_output=True, text=True)
    return json.loads(found.stdout)[0]


@pytest.mark.needs("exiftool")
@pytest.mark.parametrize("kind", FORMATS)
def test_exiftool_reads_the_marks(kind: Format, signer: Signer, tmp_path: Path) -> None:
    """With 12.57, of Debian 12, which does not see C2PA in WebP and AVIF."""
    signed = sign(picture(kind, policy=BOTH), MADE, signer)
    said = exiftool(signed.data, kind, tmp_path)
    assert said["XMP:DigitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert said["XMP:AISystemUsed"] == "safelight / mini"
    assert json.loads(said["XMP:Aigc"])["ContentProducer"] == "ACME"
    if kind in ("png", "jpeg"):
        assert (said["JUMBF:JUMDLabel"], said["JUMBF:ModelName"]) == ("c2pa", "mini")
    if kind == "png":
        assert said["PNG:AIGC"] == said["XMP:Aigc"]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_programs_that_read_parameters_still_do(kind: Format, signer: Signer, tmp_path: Path) -> None:
    """sd-parsers 0.6 opens no AVIF."""
    path = tmp_path / f"picture.{kind}"
    path.write_bytes(sign(picture(kind, policy=BOTH), MADE, signer).data)
    found = sd_parsers.ParserManager().parse(path)
    assert found
    assert [prompt.value for prompt in found.prompts] == ["a red apple"]
    assert [prompt.value for prompt in found.negative_prompts] == ["blurry"]
    [sampler] = found.samplers
    assert (sampler.name, sampler.parameters["seed"]) == ("DPM++ 2M", "1234")
