from datetime import timedelta
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from tests.trust.authority import C2PA, EMAIL, Issued, issue, new_key

from safelight.errors import InvalidCertificate
from safelight.trust.certificates import (
    algorithm_of,
    check_chain,
    describe,
    make_authority,
    make_leaf,
    read_chain,
    read_key,
    to_pem,
)

ROOT = issue("ACME root", ca=True)
BETWEEN = issue("ACME pictures", ROOT, ca=True)


def checked(leaf: Issued, *above: Issued, key: Any = None) -> None:
    check_chain([leaf.certificate, *(one.certificate for one in above)], key or leaf.key)


def test_a_development_certificate_says_that_it_proves_nothing() -> None:
    key, root = make_authority()
    leaf_key, leaf = make_leaf(root, key)
    check_chain([leaf, root], leaf_key)
    about = describe(leaf)
    assert about.subject == "CN=safelight development certificate - not a verified identity,O=safelight"
    assert about.issuer == "CN=safelight development authority - not a verified identity,O=safelight"
    assert about.development
    assert algorithm_of(leaf) == "es256"
    assert not describe(issue("x", ROOT).certificate).development


def test_ones_own_chain_is_taken_with_any_number_of_issuers() -> None:
    checked(issue("signer", ROOT), ROOT)
    checked(issue("signer", BETWEEN), BETWEEN)
    checked(issue("signer", BETWEEN), BETWEEN, ROOT)
    checked(issue("signer", ROOT, purposes=(C2PA,)), ROOT)


@pytest.mark.parametrize(
    ("kind", "name"), [("es256", "es256"), ("es384", "es384"), ("ps256", "ps256"), ("ed25519",) * 2]
)
def test_keys_of_every_kind_that_c2pa_knows_may_sign(kind: str, name: str) -> None:
    leaf = issue("signer", ROOT, key=new_key(kind))
    checked(leaf, ROOT)
    assert algorithm_of(leaf.certificate) == name


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"end": timedelta(hours=-1)}, "the certificate expired on 20"),
    "not yet": ({"start": timedelta(days=2)}, "is not valid before 20"),
    "no purpose": ({"purposes": ()}, r"must have one of emailProtection.*\(it has none\)"),
    "for servers": ({"purposes": (ExtendedKeyUsageOID.SERVER_AUTH,)}, r"it has 1\.3\.6\.1\.5\.5\.7\.3\.1"),
    "anything": ({"purposes": (EMAIL, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)}, "must have one of"),
    "may not sign": ({"signs": False}, "lacks digitalSignature"),
    "authority": ({"ca": True}, "first certificate is an authority's"),
    "curve": ({"key": new_key("k1")}, "C2PA signs with P-256"),
    "short key": ({"key": new_key("weak")}, "at least 2048 bits"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_certificate_that_cannot_sign_pictures_is_refused(what: str) -> None:
    how, said = WRONG[what]
    with pytest.raises(InvalidCertificate, match=said):
        checked(issue("signer", ROOT, **how), ROOT)


def test_a_key_of_another_certificate_is_refused() -> None:
    with pytest.raises(InvalidCertificate, match="key does not belong to the first certificate"):
        checked(issue("signer", ROOT), ROOT, key=new_key())


def test_a_chain_out_of_order_or_incomplete_is_refused() -> None:
    leaf = issue("signer", BETWEEN)
    with pytest.raises(InvalidCertificate, match="'signer' was not issued by 'ACME root', which follows it"):
        checked(leaf, ROOT, BETWEEN)
    with pytest.raises(InvalidCertificate, match="first certificate is an authority's"):
        checked(BETWEEN, ROOT, leaf)
    with pytest.raises(InvalidCertificate, match="append its issuers"):
        checked(leaf)
    with pytest.raises(InvalidCertificate, match="signed by itself"):
        checked(issue("self"))
    impostor = issue("ACME pictures", ca=True)
    with pytest.raises(InvalidCertificate, match="out of order"):
        checked(leaf, impostor)


def test_what_is_no_pem_is_refused_with_what_is_needed() -> None:
    leaf = issue("signer", ROOT)
    for data in (b"", b"hello", leaf.key_pem, leaf.pem[:200], leaf.pem.replace(b"M", b"!")):
        with pytest.raises(InvalidCertificate, match="a PEM file is needed, the signing certificate first"):
            read_chain(data)
    for data in (b"", b"hello", leaf.pem, leaf.key_pem[:100]):
        with pytest.raises(InvalidCertificate, match="no private key"):
            read_key(data)


def test_a_key_with_a_passphrase_is_refused_with_the_remedy() -> None:
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

    locked = new_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    with pytest.raises(InvalidCertificate, match=r"has a passphrase.*openssl pkey -in KEY"):
        read_key(locked)


def test_pem_survives_a_round_trip() -> None:
    leaf = issue("signer", ROOT)
    both = to_pem(leaf.key, leaf.certificate, ROOT.certificate)
    assert read_chain(both) == [leaf.certificate, ROOT.certificate]
    assert to_pem(read_key(both)) == leaf.key_pem
