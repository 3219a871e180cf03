"""An authority of one's own, its certificates, and a time stamp authority (RFC 3161) that `openssl ts` answers for."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from safelight.trust.certificates import to_pem

EMAIL = ExtendedKeyUsageOID.EMAIL_PROTECTION
C2PA = x509.ObjectIdentifier("1.3.6.1.4.1.62558.2.1")


@dataclass(frozen=True)
class Issued:
    key: Any
    certificate: x509.Certificate

    @property
    def key_pem(self) -> bytes:
        return to_pem(self.key)

    @property
    def pem(self) -> bytes:
        return to_pem(self.certificate)


def new_key(kind: str = "es256") -> Any:
    match kind:
        case "ps256":
            return rsa.generate_private_key(65537, 2048)
        case "weak":
            return rsa.generate_private_key(65537, 1024)
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            return ec.generate_private_key(
                {"es256": ec.SECP256R1(), "es384": ec.SECP384R1(), "k1": ec.SECP256K1()}[kind]
            )


def issue(
    common_name: str,
    issuer: Issued | None = None,
    *,
    ca: bool = False,
    key: Any = None,
    purposes: tuple[x509.ObjectIdentifier, ...] = (EMAIL,),
    critical_purposes: bool = False,
    signs: bool = True,
    start: timedelta = timedelta(days=-1),
    end: timedelta = timedelta(days=30),
) -> Issued:
    """A certificate; self-signed without an issuer."""
    key = key or new_key()
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "ACME"), x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    )
    above = issuer or Issued(key, None)  # type: ignore[arg-type]
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + start)
        .not_valid_after(now + end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(signs and not ca, False, False, False, False, ca, ca, False, False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above.key.public_key()), critical=False)
    )
    if purposes and not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=critical_purposes)
    algorithm = None if isinstance(above.key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return Issued(key, builder.sign(above.key, algorithm))


TSA_CONFIG = """
[tsa]
default_tsa = own
[own]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
certs = {folder}/root.pem
signer_key = {folder}/tsa-key.pem
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
accuracy = secs:1
ordering = yes
tsa_name = yes
ess_cert_id_chain = no
"""


class TimeStampAuthority:
    """Counts requests; `mood` makes it answer, refuse or keep silent."""

    def __init__(self, folder: Path, root: Issued) -> None:
        self.requests = 0
        self.mood = "answers"
        purpose = (ExtendedKeyUsageOID.TIME_STAMPING,)
        tsa = issue("ACME time stamps", root, purposes=purpose, critical_purposes=True)
        (folder / "root.pem").write_bytes(root.pem)
        (folder / "tsa.pem").write_bytes(tsa.pem)
        (folder / "tsa-key.pem").write_bytes(tsa.key_pem)
        (folder / "serial").write_text("01")
        (folder / "tsa.cnf").write_text(TSA_CONFIG.format(folder=folder))
        self.folder = folder
        self.url = ""

    def answer(self, request: bytes) -> bytes:
        (self.folder / "query.tsq").write_bytes(request)
        reply = self.folder / "reply.tsr"
        command = ["openssl", "ts", "-reply", "-config", self.folder / "tsa.cnf", "-queryfile"]
        subprocess.run([*command, self.folder / "query.tsq", "-out", reply], check=True, capture_output=True)
        return reply.read_bytes()


@contextmanager
def time_stamp_authority(folder: Path, root: Issued) -> Iterator[TimeStampAuthority]:
    authority = TimeStampAuthority(folder, root)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            authority.requests += 1
            body = self.rfile.read(int(self.headers["content-length"]))
            match authority.mood:
                case "answers":
                    status, reply = 200, authority.answer(body)
                case "refuses":
                    status, reply = 500, b"out of order"
                case "talks nonsense":
                    status, reply = 200, b"<html>"
                case _:
                    closing.wait()
                    return
            self.send_response(status)
            self.send_header("content-type", "application/timestamp-reply")
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_args: object) -> None:
            pass

    from threading import Event

    closing = Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    authority.url = f"http://127.0.0.1:{server.server_address[1]}/"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield authority
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
