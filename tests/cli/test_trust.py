"""`safelight trust`: the certificate is made, shown, replaced by one's own, and renewed."""

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Call
from tests.trust.authority import issue

from safelight.trust.credentials import open_credentials, trusted_roots

ROOT = issue("ACME root", ca=True)
OWN = issue("ACME pictures", ROOT)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(OWN.pem + ROOT.pem)
    key.write_bytes(OWN.key_pem)
    return chain, key


def shown(safelight: Call) -> dict[str, object]:
    return json.loads(safelight("trust", "certificate", "--json").stdout)


def test_the_development_certificate_says_what_it_is(safelight: Call, home: Path) -> None:
    made = safelight("trust", "init")
    assert made.exit_code == 0, made.output
    for words in (
        "safelight development certificate - not a verified identity",
        "To all who do not trust its root, it is untrusted",
        "the key in SAFELIGHT_HOME/trust",
    ):
        assert words in " ".join(made.stdout.split())
    assert "rotate" not in made.output
    again = safelight("trust", "init")
    assert again.stdout == made.stdout
    assert "It was there already; `safelight trust rotate` makes a new one." in again.stderr
    assert safelight("trust", "certificate").stdout == made.stdout
    assert safelight("trust", "certificate", "--pem").stdout.encode() == open_credentials(home / "trust").root_pem


def test_ones_own_certificate_signs_from_now_on(safelight: Call, files: tuple[Path, Path], home: Path) -> None:
    safelight("trust", "init")
    before = shown(safelight)
    taken = safelight("trust", "init", "--certificate", files[0], "--key", files[1])
    assert taken.exit_code == 0, taken.output
    assert "CN=ACME pictures,O=ACME" in taken.stdout
    assert "development" not in taken.stdout
    after = shown(safelight)
    assert (before["development"], after["development"]) == (True, False)
    assert after["issuer"] == "CN=ACME root,O=ACME"
    assert safelight("trust", "certificate", "--pem").stdout.encode() == ROOT.pem
    assert trusted_roots(home / "trust").count(b"BEGIN") == 2
    refused = safelight("trust", "rotate")
    assert refused.exit_code == 2
    assert "the certificate in use is your own" in refused.output


def test_rotation_makes_another(safelight: Call) -> None:
    safelight("trust", "init")
    first = shown(safelight)
    renewed = safelight("trust", "rotate")
    assert renewed.exit_code == 0, renewed.output
    assert shown(safelight)["sha256"] not in (None, first["sha256"])
    assert "when it is started again" in renewed.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--key", "key.pem"), "--key needs --certificate"),
        (("--certificate", "chain.pem"), "--certificate also needs --key"),
        (("--certificate", "nowhere.pem", "--key", "key.pem"), "nowhere.pem cannot be read: No such file"),
        (("--certificate", "key.pem", "--key", "key.pem"), "no certificate chain"),
        (("--certificate", "chain.pem", "--key", "other.pem"), "the key does not belong to the first certificate"),
    ],
)
def test_what_cannot_sign_is_refused_and_changes_nothing(
    words: tuple[str, ...], said: str, safelight: Call, files: tuple[Path, Path], home: Path
) -> None:
    files[1].with_name("other.pem").write_bytes(issue("other", ROOT).key_pem)
    refused = safelight("trust", "init", *words)
    assert refused.exit_code == 2
    assert said in refused.output
    assert not (home / "trust").exists()


def test_a_key_service_signs_with_a_certificate_alone(
    safelight: Call, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFELIGHT_TRUST_SIGNER", "tests.cli.test_trust:wrong_key")
    refused = safelight("trust", "init", "--certificate", files[0])
    assert "a trial with this certificate failed" in refused.output
    monkeypatch.setenv("SAFELIGHT_TRUST_SIGNER", "tests.cli.test_trust:right_key")
    taken = safelight("trust", "init", "--certificate", files[0])
    assert taken.exit_code == 0, taken.output
    assert shown(safelight)["signed_by"] == "tests.cli.test_trust:right_key"


def right_key(data: bytes, key: object = OWN.key) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    return key.sign(data, ec.ECDSA(hashes.SHA256()))  # type: ignore[attr-defined]


def wrong_key(data: bytes) -> bytes:
    return right_key(data, issue("other", ROOT).key)


def test_doctor_tells_what_signs(safelight: Call, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def finding() -> dict[str, str]:
        found = json.loads(safelight("doctor", "--json").stdout)["findings"]
        return next(one for one in found if one["name"] == "signature")

    assert "is made when it is first needed" in finding()["found"]
    assert not (home / "trust").exists()
    safelight("trust", "init")
    assert "not a verified identity" in finding()["found"]
    assert "safelight trust init --certificate" in finding()["remedy"]
    monkeypatch.setenv("SAFELIGHT_TRUST_SIGNATURE", "off")
    assert finding()["level"] == "warn"
    monkeypatch.setenv("SAFELIGHT_TRUST_PROFILES", "cn")
    assert (finding()["level"], "SAFELIGHT_TRUST_PRODUCER" in finding()["found"]) == ("fail", True)
