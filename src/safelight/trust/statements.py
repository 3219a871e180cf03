"""Signed statements: JSON as a compact JWS (RFC 7515), with the certificate that signs pictures in its header (`x5c`).

Any JWS library verifies them. Checkpoints of the ledger are statements, and reports of what was erased.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safelight.errors import InvalidCertificate, SafelightError, SigningFailed
from safelight.settings import PREFIX, Settings
from safelight.trust.certificates import algorithm_of, check_chain, describe, read_chain, read_key
from safelight.trust.credentials import Credentials, open_credentials
from safelight.trust.signer import SignCallback, answer_of, load_callback

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

ALGORITHMS = {"es256": "ES256", "es384": "ES384", "es512": "ES512", "ps256": "PS256", "ed25519": "EdDSA"}
"""JWS's names (RFC 7518, RFC 8037) by those of C2PA."""
CURVE_BYTES = {"es256": 32, "es384": 48, "es512": 66}


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    payload: Mapping[str, Any]
    signer: str
    """sha256 of the certificate, in hex."""
    trusted: bool
    """Whether its root is trusted here."""


class InvalidStatement(SafelightError):
    """It is damaged, was changed, or was not signed by the certificate that it names."""


class StatementSigner:
    """Signs with the certificate and key of pictures, or through the callback that signs those."""

    def __init__(
        self, credentials: Credentials, *, callback: SignCallback | None = None, timeout_s: float = 10
    ) -> None:
        self.credentials = credentials
        self.callback = callback
        self.timeout_s = timeout_s

    @classmethod
    def open(cls, settings: Settings) -> "StatementSigner":
        """
        Raises:
            StorageFailed, InvalidCertificate, InvalidRequest: nothing can sign.
        """
        callback = load_callback(settings.trust_signer) if settings.trust_signer else None
        return cls(open_credentials(settings.trust), callback=callback, timeout_s=settings.trust_signer_timeout_s)

    def sign(self, payload: Mapping[str, Any]) -> str:
        """
        Raises:
            SigningFailed: the key service failed, or there is no key, or it is another one than the certificate's.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.serialization import Encoding

        chain = self.credentials.chain
        algorithm = algorithm_of(chain[0])
        x5c = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode() for certificate in chain]
        header = {"alg": ALGORITHMS[algorithm], "x5c": x5c}
        signed = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(payload).encode())}"
        if self.callback is not None:
            signature = raw(self.ask(signed.encode()), algorithm)
        elif self.credentials.key is not None:
            signature = raw(sign_with(read_key(self.credentials.key), algorithm, signed.encode()), algorithm)
        else:
            raise SigningFailed(f"the certificate's key is not here, and {PREFIX}TRUST_SIGNER names nothing that signs")
        try:
            verify_with(chain[0], algorithm, signature, signed.encode())
        except (InvalidSignature, ValueError):
            raise SigningFailed(
                f"{PREFIX}TRUST_SIGNER signs with another key than that of the certificate in {self.credentials.folder}"
            ) from None
        return f"{signed}.{encoded(signature)}"

    def ask(self, data: bytes) -> bytes:
        assert self.callback
        try:
            answer = answer_of(self.callback, data, timeout_s=self.timeout_s)
        except Exception as error:
            raise SigningFailed(f"{PREFIX}TRUST_SIGNER failed ({type(error).__name__}: {error})") from error
        if not isinstance(answer, bytes) or not answer:
            raise SigningFailed(f"{PREFIX}TRUST_SIGNER returned no signature, but {type(answer).__name__}")
        return answer


def read_statement(text: str, roots: bytes) -> Statement:
    """
    Args:
        roots: PEM of the roots that are trusted, as of `credentials.trusted_roots`.

    Raises:
        InvalidStatement: it is damaged, was changed, or was not signed by the certificate that it names.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509 import load_der_x509_certificate

    try:
        head, body, signature = text.split(".")
        header = json.loads(decoded(head))
        chain = [load_der_x509_certificate(base64.b64decode(each)) for each in header["x5c"]]
        algorithm = algorithm_of(chain[0])
        if header["alg"] != ALGORITHMS[algorithm]:
            raise ValueError("the algorithm is not that of the certificate")
        verify_with(chain[0], algorithm, decoded(signature), f"{head}.{body}".encode())
        payload = json.loads(decoded(body))
    except (ValueError, TypeError, KeyError, IndexError, InvalidSignature, InvalidCertificate) as error:
        raise InvalidStatement(f"the signature does not hold ({type(error).__name__})") from None
    return Statement(payload=payload, signer=describe(chain[0]).fingerprint, trusted=is_trusted(chain, roots))


def is_trusted(chain: "list[Certificate]", roots: bytes) -> bool:
    """Whether each was issued by the next, up to a root that is trusted, whatever the time is now."""
    try:
        check_chain(chain, at=chain[0].not_valid_before_utc)
    except InvalidCertificate:
        return False
    return bool(roots) and chain[-1] in read_chain(roots)


def sign_with(key: Any, algorithm: str, data: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ec, padding

    match algorithm:
        case "ed25519":
            return key.sign(data)
        case "ps256":
            return key.sign(data, padding.PSS(padding.MGF1(hash_of(algorithm)), 32), hash_of(algorithm))
        case _:
            return key.sign(data, ec.ECDSA(hash_of(algorithm)))


def verify_with(certificate: "Certificate", algorithm: str, signature: bytes, data: bytes) -> None:
    """Raises InvalidSignature, ValueError: it is not the certificate's."""
    from cryptography.hazmat.primitives.asymmetric import ec, padding
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    key: Any = certificate.public_key()
    match algorithm:
        case "ed25519":
            key.verify(signature, data)
        case "ps256":
            key.verify(signature, data, padding.PSS(padding.MGF1(hash_of(algorithm)), 32), hash_of(algorithm))
        case _:
            size = CURVE_BYTES[algorithm]
            if len(signature) != 2 * size:
                raise ValueError("the signature has another length")
            r, s = int.from_bytes(signature[:size]), int.from_bytes(signature[size:])
            key.verify(encode_dss_signature(r, s), data, ec.ECDSA(hash_of(algorithm)))


def hash_of(algorithm: str) -> Any:
    from cryptography.hazmat.primitives import hashes

    return {"es384": hashes.SHA384, "es512": hashes.SHA512}.get(algorithm, hashes.SHA256)()


def raw(signature: bytes, algorithm: str) -> bytes:
    """r and s one after the other, as JWS has them; a key service may have said them in DER."""
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    size = CURVE_BYTES.get(algorithm)
    if size is None or len(signature) == 2 * size:
        return signature
    try:
        r, s = decode_dss_signature(signature)
        return r.to_bytes(size) + s.to_bytes(size)
    except (ValueError, OverflowError):
        raise SigningFailed(f"{PREFIX}TRUST_SIGNER returned no signature by a key for {algorithm}") from None


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
