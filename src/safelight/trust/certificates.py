"""X.509 certificates for signing pictures: a development pair, and what a chain of one's own must be (C2PA 2.2, 14.5).

`cryptography` is imported where it is used: it takes a tenth of a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from safelight.errors import InvalidCertificate

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    PrivateKey = Any
    """Any of cryptography's private keys; its classes share no base."""

ORGANIZATION = "safelight"
DEVELOPMENT = "safelight development certificate - not a verified identity"
DEVELOPMENT_AUTHORITY = "safelight development authority - not a verified identity"
AUTHORITY_DAYS, LEAF_DAYS = 20 * 365, 10 * 365
"""Long: a signature without a time stamp is valid only as long as its certificate."""
CLOCK_SKEW = timedelta(hours=1)
PURPOSES = {
    "1.3.6.1.5.5.7.3.4": "emailProtection",
    "1.3.6.1.5.5.7.3.36": "documentSigning",
    "1.3.6.1.4.1.62558.2.1": "c2pa-claimSigning",
}
"""Extended key usages for signing claims; the last is that of C2PA's own trust list."""
ANY_PURPOSE = "2.5.29.37.0"
MIN_RSA_BITS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a person wants to know of a certificate."""

    subject: str
    issuer: str
    not_before: datetime
    not_after: datetime
    fingerprint: str
    """sha256 of the certificate, in hex."""
    development: bool
    """Made by safelight itself: it says nothing of who holds its key."""


# Made here --------------------------------------------------------------------------------------------------------


def make_authority() -> tuple["PrivateKey", "Certificate"]:
    """A root for development certificates, with its key."""
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    return key, build(DEVELOPMENT_AUTHORITY, key, issuer=None, issuer_key=key, days=AUTHORITY_DAYS)


def make_leaf(issuer: "Certificate", issuer_key: "PrivateKey") -> tuple["PrivateKey", "Certificate"]:
    """A development certificate for signing, ES256, with its key."""
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    return key, build(DEVELOPMENT, key, issuer=issuer, issuer_key=issuer_key, days=LEAF_DAYS)


def build(
    common_name: str, key: "PrivateKey", *, issuer: "Certificate | None", issuer_key: "PrivateKey", days: int
) -> "Certificate":
    """A certificate of this key: a root without `issuer`, and otherwise a leaf."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    root = issuer is None
    names = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
        x509.NameAttribute(NameOID.COMMON_NAME, common_name),
    ]
    subject = x509.Name(names)
    now = datetime.now(UTC)
    usage = x509.KeyUsage(
        digital_signature=not root,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=root,
        crl_sign=root,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=root, path_length=0 if root else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not root:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


# Read and checked -------------------------------------------------------------------------------------------------


def read_chain(pem: bytes) -> list["Certificate"]:
    """
    Raises:
        InvalidCertificate: there is no certificate in it, or a damaged one.
    """
    from cryptography import x509

    try:
        return list(x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise InvalidCertificate(
            f"no certificate chain ({error}): a PEM file is needed, the signing certificate first, then its issuers"
        ) from None


def read_key(pem: bytes) -> "PrivateKey":
    """
    Raises:
        InvalidCertificate: it is no private key, or one with a passphrase.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(pem, password=None)
    except TypeError:
        raise InvalidCertificate(
            "the key has a passphrase, which a server cannot type: remove it with `openssl pkey -in KEY -out PLAIN`, "
            "or sign through a key service (SAFELIGHT_TRUST_SIGNER)"
        ) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidCertificate(f"no private key ({error}): a PEM file is needed") from None


def check_chain(chain: Sequence["Certificate"], key: "PrivateKey | None" = None, *, at: datetime | None = None) -> None:
    """
    Args:
        key: of the first certificate; None where something else signs.
        at: when it must be valid; now, if left out.

    Raises:
        InvalidCertificate: pictures cannot be signed with it, or nobody could verify the signature.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    leaf = chain[0]
    algorithm_of(leaf)
    if key is not None and key.public_key() != leaf.public_key():
        raise InvalidCertificate("the key does not belong to the first certificate: it signs for another one")
    check_dates(leaf, at or datetime.now(UTC))
    if is_root(leaf):
        raise InvalidCertificate("the certificate is signed by itself, which C2PA refuses: have an authority issue it")
    if len(chain) == 1:
        raise InvalidCertificate("the chain has one certificate: append its issuers, which verifiers must know")
    constraints = extension(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise InvalidCertificate(
            "the first certificate is an authority's: put the signing certificate first, then its issuers"
        )
    usage = extension(leaf, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        raise InvalidCertificate("the certificate's key usage lacks digitalSignature")
    purposes = {purpose.dotted_string for purpose in extension(leaf, x509.ExtendedKeyUsage) or ()}
    if ANY_PURPOSE in purposes or not purposes & PURPOSES.keys():
        raise InvalidCertificate(
            f"the certificate's extended key usage must have one of {', '.join(PURPOSES.values())} "
            f"(it has {', '.join(sorted(purposes)) or 'none'})"
        )
    for below, above in pairwise(chain):
        try:
            below.verify_directly_issued_by(above)
        except (ValueError, TypeError, InvalidSignature):
            raise InvalidCertificate(
                f"the chain is out of order: {common_name(below)!r} was not issued by {common_name(above)!r}, which "
                "follows it"
            ) from None


def is_root(certificate: "Certificate") -> bool:
    return certificate.issuer == certificate.subject


def check_dates(leaf: "Certificate", at: datetime) -> None:
    if at >= leaf.not_valid_after_utc:
        raise InvalidCertificate(f"the certificate expired on {leaf.not_valid_after_utc.date()}")
    if at < leaf.not_valid_before_utc:
        raise InvalidCertificate(f"the certificate is not valid before {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")


def algorithm_of(leaf: "Certificate") -> str:
    """C2PA's name of the signature algorithm for the certificate's key, such as `es256`.

    Raises:
        InvalidCertificate: C2PA has none for such a key.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    key = leaf.public_key()
    match key:
        case ec.EllipticCurvePublicKey() if key.curve.name in ("secp256r1", "secp384r1", "secp521r1"):
            return {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}[key.curve.name]
        case ed25519.Ed25519PublicKey():
            return "ed25519"
        case rsa.RSAPublicKey() if key.key_size >= MIN_RSA_BITS:
            return "ps256"
        case _:
            raise InvalidCertificate(
                f"C2PA signs with P-256, P-384, P-521, Ed25519 or RSA keys of at least {MIN_RSA_BITS} bits, and the "
                "certificate's key is none of these"
            )


def describe(certificate: "Certificate") -> Description:
    from cryptography.hazmat.primitives import hashes

    return Description(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        development=common_name(certificate) == DEVELOPMENT,
    )


def common_name(certificate: "Certificate") -> str:
    from cryptography.x509.oid import NameOID

    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()


def extension(certificate: "Certificate", kind: type[Any]) -> Any:
    from cryptography.x509 import ExtensionNotFound

    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except ExtensionNotFound:
        return None


def to_pem(*items: Any) -> bytes:
    """PEM of certificates and private keys, one after the other."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return b"".join(
        item.public_bytes(Encoding.PEM)
        if hasattr(item, "public_bytes")
        else item.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for item in items
    )
