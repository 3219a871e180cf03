"""One signer a process: c2pa's context and signer, made once and shared by all threads.

    key on disk         c2pa signs with it                       +4 kB a picture
    trust_signer        a function signs, in its own time        +14 kB: c2pa leaves room for any signature

Whatever fails, `SigningFailed` is raised and the picture does not leave. The one exception is a time stamp under
`best-effort`: without an answer the picture is signed without one, and for a minute none is asked for.
"""

import asyncio
import inspect
import json
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import EntryPoint, entry_points
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, cast

from PIL import Image

from safelight.errors import InvalidCertificate, InvalidRequest, SigningFailed
from safelight.settings import PREFIX, Settings
from safelight.trust.bounded import within
from safelight.trust.certificates import PURPOSES, algorithm_of, is_root, to_pem
from safelight.trust.credentials import Credentials, open_credentials, trusted_roots
from safelight.trust.policy import Policy
from safelight.version import __version__

if TYPE_CHECKING:
    from c2pa import Builder, Context
    from c2pa import Signer as C2paSigner

SignCallback = Callable[[bytes], object]
"""Returns the signature of these bytes by the certificate's key, as bytes: ECDSA as r and s one after the other or in
DER, each with the hash that belongs to the curve; PS256; Ed25519. It may be a coroutine function."""
ENTRY_POINTS = "safelight.signers"
PAUSE_S = 60
"""How long a time stamp authority that failed is left alone."""
NOT_SIGNED = "the picture could not be signed, and is not given out unsigned"
EMPTY = {
    "claim_generator_info": [{"name": "safelight", "version": __version__}],
    "assertions": [
        {
            "label": "c2pa.actions.v2",
            "data": {
                "actions": [{"action": "c2pa.created", "digitalSourceType": "http://c2pa.org/digitalsourcetype/empty"}]
            },
        }
    ],
}
"""The manifest of a trial."""
Stamp = Literal["off", "stamped", "missed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    data: bytes
    manifest: bytes
    """The manifest by itself, for a sidecar file `.c2pa`."""
    timestamp: Stamp
    why_missed: str = ""


class CallbackFailed(SigningFailed):
    """The callback failed, and not the time stamp authority."""


class Signer:
    """Signs pictures; safe to use from many threads.

    Args:
        callback: signs instead of the credentials' key.
        timeout_s: how long the callback, or a time stamp, may take.

    Raises:
        InvalidCertificate: the certificate cannot sign now.
    """

    def __init__(
        self, credentials: Credentials, policy: Policy, *, callback: SignCallback | None = None, timeout_s: float = 10
    ) -> None:
        from c2pa import C2paError

        credentials.require_valid(datetime.now(UTC))
        if credentials.key is None and callback is None:
            raise InvalidCertificate(
                f"there is a certificate without its key in {credentials.folder}, and {PREFIX}TRUST_SIGNER names "
                "nothing that signs with it"
            )
        self.credentials = credentials
        self.policy = policy
        self.timeout_s = timeout_s
        self.callback = callback
        self.failures = threading.local()
        """Why the callback failed in this thread: c2pa itself only says that it did."""
        self.paused_until = 0.0
        try:
            self.context = make_context(credentials.root_pem + trusted_roots(credentials.folder))
            self.plain = self.make(None)
            self.stamping = None if policy.timestamp == "off" else self.make(policy.timestamp_url)
        except C2paError as error:
            raise InvalidCertificate(f"pictures cannot be signed with this certificate: {error}") from None

    def make(self, url: str | None) -> "C2paSigner":
        from c2pa import C2paSignerInfo, C2paSigningAlg
        from c2pa import Signer as C2paSigner

        algorithm = algorithm_of(self.credentials.chain[0])
        # Verifiers have the root, and it would be in every picture.
        chain = to_pem(*(certificate for certificate in self.credentials.chain if not is_root(certificate)))
        if self.callback:
            return C2paSigner.from_callback(self.call, C2paSigningAlg[algorithm.upper()], chain.decode(), url)
        stamp_url = None if url is None else url.encode()
        assert self.credentials.key
        return C2paSigner.from_info(C2paSignerInfo(algorithm.encode(), chain, self.credentials.key, stamp_url))

    def sign(self, data: bytes, mime: str, prepare: "Callable[[], Builder]", *, detached: bool = False) -> Signed:
        """Sign with what `prepare` makes, anew for each try.

        Args:
            data: the encoded picture.
            detached: leave the picture as it is; the manifest goes beside it.

        Raises:
            SigningFailed: the picture must not leave.
        """
        self.require_valid()
        missed = ""
        if self.stamping is not None:
            required = self.policy.timestamp == "required"
            if required or time.monotonic() >= self.paused_until:
                try:
                    signed, manifest = self.stamped(data, mime, prepare, detached=detached)
                except CallbackFailed:
                    raise
                except SigningFailed as error:
                    if required:
                        raise
                    missed = str(error)
                    self.paused_until = time.monotonic() + PAUSE_S
                else:
                    return Signed(data=signed, manifest=manifest, timestamp="stamped")
            missed = missed or "the time stamp authority failed a moment ago"
        signed, manifest = self.once(self.plain, data, mime, prepare, detached=detached)
        return Signed(data=signed, manifest=manifest, timestamp="missed" if missed else "off", why_missed=missed)

    def try_out(self) -> None:
        """Sign an empty picture without a time stamp, and verify it.

        Raises:
            InvalidCertificate: pictures would not be signed, or not verify.
        """
        from c2pa import Builder, Reader

        blank = BytesIO()
        Image.new("L", (8, 8)).save(blank, "PNG")
        try:
            data, _ = self.once(
                self.plain,
                blank.getvalue(),
                "image/png",
                lambda: Builder.from_json(json.dumps(EMPTY), context=self.context),
                detached=False,
            )
        except SigningFailed as error:
            raise InvalidCertificate(str(error).replace(NOT_SIGNED, "a trial with this certificate failed")) from None
        with Reader("image/png", BytesIO(data), context=self.context) as reader:
            if (state := reader.get_validation_state()) != "Trusted":
                raise InvalidCertificate(f"an empty picture that it signed verifies as {state}: check the chain")

    def stamped(
        self, data: bytes, mime: str, prepare: "Callable[[], Builder]", *, detached: bool
    ) -> tuple[bytes, bytes]:
        """With a time stamp. c2pa waits for half a minute, which is too long for a picture that somebody waits for."""
        assert self.stamping is not None
        stamping, timeout_s = self.stamping, self.timeout_s * (2 if self.callback else 1)
        try:
            return within(timeout_s, lambda: self.once(stamping, data, mime, prepare, detached=detached))
        except TimeoutError as error:
            raise SigningFailed(f"no time stamp from {self.policy.timestamp_url}: {error}") from None

    def once(
        self, signer: "C2paSigner", data: bytes, mime: str, prepare: "Callable[[], Builder]", *, detached: bool
    ) -> tuple[bytes, bytes]:
        from c2pa import C2paError

        self.failures.reason = ""
        result = BytesIO()
        try:
            builder = prepare()
            if detached:
                builder.set_no_embed()
            manifest = builder.sign(signer, mime, BytesIO(data), result)
        except C2paError as error:
            if self.failures.reason:
                raise CallbackFailed(f"{NOT_SIGNED}: {self.failures.reason}") from None
            raise SigningFailed(f"{NOT_SIGNED}: {error}") from None
        signed = result.getvalue()
        if not manifest or not (detached or signed):
            raise SigningFailed(f"{NOT_SIGNED}: nothing was written")
        return (data if detached else signed), manifest

    def call(self, data: bytes) -> bytes:
        """What c2pa calls to have bytes signed."""
        assert self.callback
        try:
            answer = answer_of(self.callback, data, timeout_s=self.timeout_s)
            if not isinstance(answer, bytes) or not answer:
                raise TypeError(f"a signature is bytes, not {answer!r:.40}")
        except Exception as error:  # noqa: BLE001  told by `once`; c2pa would write it to the log, and say less
            self.failures.reason = f"{PREFIX}TRUST_SIGNER failed ({type(error).__name__}: {error})"
            return b""
        return answer

    def require_valid(self) -> None:
        try:
            self.credentials.require_valid(datetime.now(UTC))
        except InvalidCertificate as error:
            raise SigningFailed(f"{NOT_SIGNED}: {error}") from None


def answer_of(callback: SignCallback, data: bytes, *, timeout_s: float) -> object:
    """What the callback returns for these bytes, waited for if it is a coroutine function.

    Raises:
        TimeoutError: it took longer.
        Exception: what it raised.
    """

    def signature() -> object:
        answer = callback(data)
        return asyncio.run(wait_for(answer)) if inspect.isawaitable(answer) else answer

    return within(timeout_s, signature)


async def wait_for(answer: Awaitable[object]) -> object:
    return await answer


def open_signer(settings: Settings) -> Signer | None:
    """The process's signer, tried out; None where the policy signs nothing.

    Raises:
        SafelightError: it cannot sign; no picture should be drawn that could not be signed.
    """
    policy = Policy.of(settings)
    if not policy.signature:
        return None
    settings.make_home()
    credentials = open_credentials(settings.trust)
    callback = load_callback(settings.trust_signer) if settings.trust_signer else None
    if callback and credentials.description.development:
        raise InvalidCertificate(
            f"{PREFIX}TRUST_SIGNER={settings.trust_signer} signs with a key whose certificate is not here: give it to "
            "`safelight trust init --certificate FILE`"
        )
    signer = Signer(credentials, policy, callback=callback, timeout_s=settings.trust_signer_timeout_s)
    signer.try_out()
    return signer


def load_callback(name: str) -> SignCallback:
    """The function that an operator's setting names.

    Raises:
        InvalidRequest: there is none.
    """
    setting = f"{PREFIX}TRUST_SIGNER"
    if ":" in name:
        found = EntryPoint(name=name, value=name, group=ENTRY_POINTS)
    else:
        known = entry_points(group=ENTRY_POINTS)
        if name not in known.names:
            names = ", ".join(sorted(known.names)) or "none"
            raise InvalidRequest(
                f"{setting}: no signer {name!r} is installed; there are: {names}; or `module:function`"
            )
        found = known[name]
    try:
        callback = found.load()
    except Exception as error:
        raise InvalidRequest(f"{setting}: {name} cannot be loaded ({type(error).__name__}: {error})") from error
    if not callable(callback):
        raise InvalidRequest(f"{setting}: {name} is not a function")
    return cast(SignCallback, callback)


def make_context(roots: bytes) -> "Context":
    """c2pa's settings, for signing and reading: nothing is fetched, no thumbnails, and these roots are trusted."""
    from c2pa import Context

    trust: dict[str, Any] = {"trust_config": "\n".join(PURPOSES)}
    if roots:
        trust["trust_anchors"] = roots.decode()
    return Context.from_dict(
        {
            "builder": {"thumbnail": {"enabled": False}},
            "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_after_sign": True},
            "trust": trust,
        }
    )
