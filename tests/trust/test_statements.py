"""Signed statements: by every kind of key and through a callback, verified by hand and by what they name."""

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from tests.trust.authority import issue, new_key

from safelight.errors import SigningFailed
from safelight.trust.certificates import algorithm_of
from safelight.trust.credentials import Credentials, own_credentials, trusted_roots, use
from safelight.trust.statements import InvalidStatement, StatementSigner, read_statement, sign_with

P521 = ec.generate_private_key(ec.SECP521R1())
SAID = {"kind": "checkpoint", "seq": 7, "hash": "ab" * 32}


def test_a_statement_names_its_certificate_and_is_trusted(credentials: Credentials) -> None:
    statement = StatementSigner(credentials).sign(SAID)
    found = read_statement(statement, trusted_roots(credentials.folder))
    assert (found.payload, found.trusted) == (SAID, True)
    assert found.signer == credentials.description.fingerprint
    assert not read_statement(statement, b"").trusted
    header = json.loads(base64.urlsafe_b64decode(statement.split(".")[0] + "=="))
    assert header["alg"] == "ES256"
    assert len(header["x5c"]) == 2


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_changed_character_shows(credentials: Credentials, part: int) -> None:
    parts = StatementSigner(credentials).sign(SAID).split(".")
    middle = len(parts[part]) // 2
    other = "A" if parts[part][middle] != "A" else "B"
    parts[part] = parts[part][:middle] + other + parts[part][middle + 1 :]
    with pytest.raises(InvalidStatement, match="the signature does not hold"):
        read_statement(".".join(parts), b"")


@pytest.mark.parametrize("text", ["", "a.b", "a.b.c", "....", "e30.e30.e30", "None"])
def test_what_is_no_statement_is_refused(text: str) -> None:
    with pytest.raises(InvalidStatement):
        read_statement(text, b"")


@pytest.mark.parametrize("kind", ["es256", "es384", "es512", "ed25519", "ps256"])
@pytest.mark.parametrize("by", ["key", "callback"])
def test_every_kind_of_key_signs(folder: Path, kind: str, by: str) -> None:
    root = issue("ACME root", ca=True)
    leaf = issue("ACME pictures", root, key=P521 if kind == "es512" else new_key(kind))
    chain = leaf.pem + root.pem
    key = load_pem_private_key(leaf.key_pem, password=None)
    if by == "key":
        own = own_credentials(folder, chain, leaf.key_pem)
        signer = StatementSigner(own)
    else:
        own = own_credentials(folder, chain, None)
        # As a key service does: ECDSA in DER.
        signer = StatementSigner(own, callback=lambda data: sign_with(key, algorithm_of(own.chain[0]), data))
    use(own)
    found = read_statement(signer.sign(SAID), trusted_roots(folder))
    assert (found.payload, found.trusted) == (SAID, True)


def test_a_coroutine_may_sign(credentials: Credentials) -> None:
    key = load_pem_private_key(credentials.key or b"", password=None)

    async def callback(data: bytes) -> bytes:
        return sign_with(key, "es256", data)

    statement = StatementSigner(credentials, callback=callback).sign(SAID)
    assert read_statement(statement, credentials.root_pem).trusted


def test_a_service_with_another_key_signs_nothing(credentials: Credentials) -> None:
    other = new_key("es256")
    with pytest.raises(SigningFailed, match="signs with another key than that of the certificate"):
        StatementSigner(credentials, callback=lambda data: sign_with(other, "es256", data)).sign(SAID)


@pytest.mark.parametrize("answer", [None, b"", "text", b"no signature"])
def test_a_callback_that_signs_nothing_is_reported(credentials: Credentials, answer: object) -> None:
    with pytest.raises(SigningFailed, match="SAFELIGHT_TRUST_SIGNER returned no signature"):
        StatementSigner(credentials, callback=lambda _data: answer).sign(SAID)
