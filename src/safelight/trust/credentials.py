"""The certificate and key that sign pictures, in SAFELIGHT_HOME/trust.

    signing.pem      private key and chain in one file, so that they are always of one another; 0600
    authority.pem    key and certificate of the development authority, which issues the next certificate; 0600
    former/          chains that signed earlier pictures, without keys; their roots stay trusted here
    anchors/         further roots to trust, put there by the operator

`open_credentials` makes a development certificate where there is none. Files appear whole or not at all, and under a
lock: of two processes that start at once, both sign with the same certificate.
"""

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.errors import InvalidCertificate, StorageFailed
from safelight.regular_file import is_regular, read_regular
from safelight.settings import PREFIX
from safelight.trust.certificates import (
    Description,
    check_chain,
    check_dates,
    describe,
    make_authority,
    make_leaf,
    read_chain,
    read_key,
    to_pem,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from cryptography.x509 import Certificate

SIGNING, AUTHORITY, FORMER, ANCHORS = "signing.pem", "authority.pem", "former", "anchors"
LOCK_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What signs from now on."""

    folder: Path
    chain: "Sequence[Certificate]"
    """The signing certificate, then its issuers."""
    key: bytes | None
    """The private key as PEM; None where something else signs."""

    def __repr__(self) -> str:  # without the key
        return f"Credentials({self.description.subject!r})"

    @property
    def description(self) -> Description:
        return describe(self.chain[0])

    @property
    def chain_pem(self) -> bytes:
        return to_pem(*self.chain)

    @property
    def root_pem(self) -> bytes:
        """What verifiers must trust to take the signatures for ours."""
        return to_pem(self.chain[-1])

    def require_valid(self, at: "datetime") -> None:
        """Raises InvalidCertificate if the certificate has expired, or is not valid yet."""
        try:
            check_dates(self.chain[0], at)
        except InvalidCertificate as error:
            remedy = "rotate" if self.description.development else "init --certificate FILE --key FILE"
            raise InvalidCertificate(f"{error}; `safelight trust {remedy}`") from None


def open_credentials(folder: Path) -> Credentials:
    """The certificate in use; the first time, a development certificate is made.

    Raises:
        StorageFailed: the folder cannot be written, or a file in it cannot be read.
        InvalidCertificate: a file in it is damaged.
    """
    found = read_credentials(folder)
    if found is not None:
        return found
    with locked(folder):
        return read_credentials(folder) or make_development(folder)


def read_credentials(folder: Path) -> Credentials | None:
    """The certificate in use, or None; raises as `open_credentials`."""
    path = folder / SIGNING
    if not is_regular(path):
        return None
    data = read_file(path)
    try:
        key = data if b"PRIVATE KEY" in data else None
        chain = read_chain(data)
        if key is not None:
            key = to_pem(parsed := read_key(key))
            if parsed.public_key() != chain[0].public_key():
                raise InvalidCertificate("the private key and certificate do not belong together")
    except InvalidCertificate as error:
        raise InvalidCertificate(
            f"{path} is damaged ({error}): restore it from a backup, or move it away and run `safelight trust init`"
        ) from None
    return Credentials(folder=folder, chain=chain, key=key)


def own_credentials(folder: Path, certificate: bytes, key: bytes | None) -> Credentials:
    """One's own certificate, checked; nothing is written yet.

    Args:
        certificate: the chain as PEM, the signing certificate first.
        key: its private key as PEM; None where something else signs.

    Raises:
        InvalidCertificate: pictures cannot be signed with it.
    """
    chain = read_chain(certificate)
    parsed = None if key is None else read_key(key)
    check_chain(chain, parsed)
    return Credentials(folder=folder, chain=chain, key=None if parsed is None else to_pem(parsed))


def use(credentials: Credentials) -> None:
    """Sign with these from now on; the former ones are kept for verification."""
    with locked(credentials.folder):
        replace(credentials)


def rotate(folder: Path) -> Credentials:
    """Make a new development certificate; the former one is kept for verification.

    Raises:
        InvalidCertificate: the certificate in use is not a development certificate.
    """
    with locked(folder):
        current = read_credentials(folder)
        if current is not None and not current.description.development:
            raise InvalidCertificate(
                "the certificate in use is your own: have a new one issued, and give it to "
                "`safelight trust init --certificate FILE --key FILE`"
            )
        return make_development(folder)


def trusted_roots(folder: Path) -> bytes:
    """PEM of all roots: of the chain in use, of former ones, and of `anchors/`."""
    found = read_credentials(folder)
    roots = {found.root_pem: None} if found else {}
    for path in sorted((folder / FORMER).glob("*.pem")):
        roots[to_pem(read_chain(read_file(path))[-1])] = None
    for path in sorted((folder / ANCHORS).glob("*.pem")):
        roots |= dict.fromkeys(to_pem(root) for root in read_chain(read_file(path)))
    return b"".join(roots)


def make_development(folder: Path) -> Credentials:
    """A new certificate of the development authority, which is made too if there is none. Call it under the lock."""
    path = folder / AUTHORITY
    if is_regular(path):
        data = read_file(path)
        try:
            authority_key, [authority] = read_key(data), read_chain(data)
        except (InvalidCertificate, ValueError):
            raise InvalidCertificate(
                f"{path} is damaged: restore it from a backup, or move it away and a new authority is made"
            ) from None
    else:
        authority_key, authority = make_authority()
        write_secret(path, to_pem(authority_key, authority))
    key, leaf = make_leaf(authority, authority_key)
    return replace(Credentials(folder=folder, chain=[leaf, authority], key=to_pem(key)))


def replace(credentials: Credentials) -> Credentials:
    """Put the former chain aside, then these in its place. Call it under the lock."""
    folder = credentials.folder
    former = read_credentials(folder)
    if former is not None and former.description.fingerprint != credentials.description.fingerprint:
        write_secret(folder / FORMER / f"{former.description.fingerprint}.pem", former.chain_pem)
    write_secret(folder / SIGNING, (credentials.key or b"") + credentials.chain_pem)
    return credentials


@contextmanager
def locked(folder: Path) -> Generator[None, None, None]:
    """
    Raises:
        StorageFailed: the folder cannot be made or written.
    """
    from filelock import FileLock, Timeout

    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "it cannot be written by this user")
        lock = FileLock(folder / ".lock", timeout=LOCK_TIMEOUT_S)
        try:
            lock.acquire()
        except Timeout:
            raise StorageFailed(f"{lock.lock_file} is held by another process for {LOCK_TIMEOUT_S} s") from None
    try:
        yield
    finally:
        lock.release()


def write_secret(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read; whole, or not at all."""
    part = path.parent / f".{secrets.token_hex(8)}.part"
    with storage_errors(path.parent):
        path.parent.mkdir(exist_ok=True, mode=0o700)
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            with suppress(OSError):
                part.unlink()


def read_file(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise StorageFailed(f"cannot read {path}: {error.strerror or error}") from error


@contextmanager
def storage_errors(folder: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise StorageFailed(
            f"cannot write {folder}, where the certificate for signing pictures is kept: {error.strerror or error}; "
            f"{PREFIX}HOME chooses another place, {PREFIX}TRUST_SIGNATURE=off signs nothing"
        ) from error
