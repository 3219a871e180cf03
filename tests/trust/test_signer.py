"""Signing through a callback, and time stamps; whatever fails, no picture leaves unsigned."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from tests.trust.authority import TimeStampAuthority, issue, time_stamp_authority
from tests.trust.pictures import APPLE, NOW, POLICY, picture, report

from safelight.errors import InvalidCertificate, InvalidRequest, SigningFailed
from safelight.settings import Settings
from safelight.trust import signer as signers
from safelight.trust.bounded import within
from safelight.trust.credentials import Credentials, open_credentials, own_credentials, use
from safelight.trust.manifest import manifest
from safelight.trust.policy import Policy
from safelight.trust.sign import sign
from safelight.trust.signer import SignCallback, Signed, Signer, load_callback, make_context, open_signer

ROOT = issue("ACME root", ca=True)
OWN = issue("ACME pictures", ROOT)
MADE = manifest(APPLE, NOW, POLICY)


@pytest.fixture
def keyless(folder: Path) -> Credentials:
    return own_credentials(folder, OWN.pem + ROOT.pem, None)


def in_der(data: bytes) -> bytes:
    return OWN.key.sign(data, ec.ECDSA(hashes.SHA256()))


def raw(data: bytes) -> bytes:
    r, s = decode_dss_signature(in_der(data))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


async def later(data: bytes) -> bytes:
    await asyncio.sleep(0.001)
    return raw(data)


# Callbacks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("callback", [raw, in_der, later])
def test_a_key_service_may_sign(callback: SignCallback, keyless: Credentials) -> None:
    signer = Signer(keyless, POLICY, callback=callback)
    signer.try_out()
    signed = sign(picture(), MADE, signer)
    found = report(signed.data, signer.context).signature
    assert (found.state, found.common_name) == ("valid", "ACME pictures")
    assert len(signed.data) - len(picture()) <= 20_000


def test_a_coroutine_signs_from_within_an_event_loop(keyless: Credentials) -> None:
    async def main() -> Signed:
        return sign(picture(), MADE, Signer(keyless, POLICY, callback=later))

    assert asyncio.run(main()).manifest


def unplugged(_data: bytes) -> bytes:
    raise ConnectionError("the module is unplugged")


async def unplugged_later(_data: bytes) -> bytes:
    raise ConnectionError("the module is unplugged")


def hung(_data: bytes) -> bytes:
    threading.Event().wait()
    raise AssertionError


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (unplugged, r"SAFELIGHT_TRUST_SIGNER failed \(ConnectionError: the module is unplugged\)"),
        (unplugged_later, "the module is unplugged"),
        (hung, r"TimeoutError: no answer within 0\.2 s"),
        (lambda _data: "text", "a signature is bytes, not 'text'"),
        (lambda _data: b"", "a signature is bytes, not b''"),
        (lambda _data: None, "a signature is bytes, not None"),
        (lambda _data: b"\1" * 64, "signature"),
        (lambda _data: b"\1" * 30_000, "signature"),
        (lambda data: raw(data + b"x"), "signature"),
    ],
)
def test_a_signer_that_fails_gives_no_picture(callback: SignCallback, said: str, keyless: Credentials) -> None:
    with pytest.raises(SigningFailed, match=f"is not given out unsigned.*{said}"):
        sign(picture(), MADE, Signer(keyless, POLICY, callback=callback, timeout_s=0.2))


def test_a_failure_of_one_thread_is_not_told_of_another(keyless: Credentials) -> None:
    def sometimes(data: bytes) -> bytes:
        return raw(data) if fails.is_set() else unplugged(data)

    fails = threading.Event()
    signer = Signer(keyless, POLICY, callback=sometimes)
    with pytest.raises(SigningFailed, match="unplugged"):
        sign(picture(), MADE, signer)
    fails.set()
    assert report(sign(picture(), MADE, signer).data, signer.context).signature.state == "valid"


def test_a_callback_with_another_key_is_found_before_it_is_used(keyless: Credentials) -> None:
    other = issue("other", ROOT)
    with pytest.raises(InvalidCertificate, match="a trial with this certificate failed"):
        Signer(keyless, POLICY, callback=lambda data: other.key.sign(data, ec.ECDSA(hashes.SHA256()))).try_out()


def test_a_certificate_without_a_key_needs_a_signer(keyless: Credentials, home: Path) -> None:
    use(Credentials(folder=home / "trust", chain=keyless.chain, key=None))
    with pytest.raises(InvalidCertificate, match=r"without its key.*SAFELIGHT_TRUST_SIGNER names nothing"):
        open_signer(Settings.from_environment())
    signer = open_signer(Settings.from_environment(trust_signer="tests.trust.test_signer:raw"))
    assert signer
    assert sign(picture(), MADE, signer).manifest


def test_a_signer_that_is_not_there_is_found_before_anything_is_drawn(keyless: Credentials, home: Path) -> None:
    named = Settings.from_environment(trust_signer="tests.trust.test_signer:unplugged")
    with pytest.raises(InvalidCertificate, match=r"whose certificate is not here.*init --certificate FILE"):
        open_signer(named)
    use(Credentials(folder=home / "trust", chain=keyless.chain, key=None))
    with pytest.raises(InvalidCertificate, match=r"a trial.*the module is unplugged"):
        open_signer(named)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("kms", "no signer 'kms' is installed; there are: none; or `module:function`"),
        ("no_such_module:sign", "cannot be loaded .ModuleNotFoundError"),
        ("tests.trust.test_signer:no_such_name", "cannot be loaded .AttributeError"),
        ("tests.trust.test_signer:ROOT", "is not a function"),
    ],
)
def test_a_signer_that_cannot_be_loaded_is_named(name: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=f"SAFELIGHT_TRUST_SIGNER: .*{said}"):
        load_callback(name)


def test_what_takes_too_long_is_left_alone() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s"):
        within(0.01, threading.Event().wait)
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)


# Time stamps ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tsa(tmp_path: Path) -> Iterator[TimeStampAuthority]:
    with time_stamp_authority(tmp_path, ROOT) as authority:
        yield authority


def stamping(folder: Path, url: str, policy: Any, **more: Any) -> Signer:
    use(own_credentials(folder, OWN.pem + ROOT.pem, OWN.key_pem))
    return Signer(open_credentials(folder), Policy(timestamp=policy, timestamp_url=url), **more)


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("policy", ["best-effort", "required"])
def test_a_time_stamp_is_in_the_signature(policy: str, folder: Path, tsa: TimeStampAuthority) -> None:
    signer = stamping(folder, tsa.url, policy)
    signed = sign(picture(), MADE, signer)
    assert (signed.timestamp, tsa.requests) == ("stamped", 1)
    found = report(signed.data, signer.context).signature
    assert (found.state, found.reasons) == ("valid", ())
    assert found.time_stamp.startswith("20")
    assert found.time_stamp_trusted
    with_another_root = make_context(issue("another root", ca=True).pem)
    assert not report(signed.data, with_another_root).signature.time_stamp_trusted
    codes = {one["code"] for one in found.manifest["validation_results"]["activeManifest"]["success"]}
    assert codes >= {"timeStamp.validated", "timeStamp.trusted"}


@pytest.mark.needs("openssl")
def test_a_picture_with_a_time_stamp_outlives_its_certificate(folder: Path, tsa: TimeStampAuthority) -> None:
    from datetime import timedelta

    brief = issue("ACME for a moment", ROOT, end=timedelta(seconds=4))
    credentials = own_credentials(folder, brief.pem + ROOT.pem, brief.key_pem)
    stamped = Signer(credentials, Policy(timestamp="required", timestamp_url=tsa.url))
    with_stamp, without = sign(picture(), MADE, stamped).data, sign(picture(), MADE, Signer(credentials, POLICY)).data
    while report(without, stamped.context).signature.state == "valid":
        threading.Event().wait(0.2)
    assert report(with_stamp, stamped.context).signature.state == "valid"
    with pytest.raises(SigningFailed, match="the certificate expired on"):
        sign(picture(), MADE, stamped)


MOODS = ["refuses", "talks nonsense", "keeps silent"]


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("mood", MOODS)
def test_without_a_required_time_stamp_there_is_no_picture(mood: str, folder: Path, tsa: TimeStampAuthority) -> None:
    tsa.mood = mood
    signer = stamping(folder, tsa.url, "required", timeout_s=0.5)
    for tries in (1, 2):
        with pytest.raises(SigningFailed, match=r"the picture could not be signed|no time stamp from http://127"):
            sign(picture(), MADE, signer)
        assert tsa.requests == tries
    tsa.mood = "answers"
    assert sign(picture(), MADE, signer).timestamp == "stamped"


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("mood", MOODS)
def test_best_effort_signs_without_a_time_stamp_and_says_so(
    mood: str, folder: Path, tsa: TimeStampAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    tsa.mood = mood
    signer = stamping(folder, tsa.url, "best-effort", timeout_s=0.5)
    for _ in range(3):
        signed = sign(picture(), MADE, signer)
        assert signed.timestamp == "missed"
        assert signed.why_missed
        found = report(signed.data, signer.context).signature
        assert (found.state, found.time_stamp) == ("valid", "")
    assert tsa.requests == 1, "it is left alone for a while"
    tsa.mood = "answers"
    monkeypatch.setattr(signers, "PAUSE_S", 0)
    signer.paused_until = 0
    assert sign(picture(), MADE, signer).timestamp == "stamped"


def test_an_authority_that_is_not_there_is_as_one_that_refuses(folder: Path) -> None:
    nowhere = "http://127.0.0.1:9/"
    assert sign(picture(), MADE, stamping(folder, nowhere, "best-effort")).timestamp == "missed"
    with pytest.raises(SigningFailed, match=nowhere):
        sign(picture(), MADE, stamping(folder, nowhere, "required"))


@pytest.mark.needs("openssl")
def test_a_key_service_gets_a_time_stamp_too_and_its_failure_is_its_own(folder: Path, tsa: TimeStampAuthority) -> None:
    signer = stamping(folder, tsa.url, "best-effort", callback=raw)
    signed = sign(picture(), MADE, signer)
    assert (signed.timestamp, report(signed.data, signer.context).signature.state) == ("stamped", "valid")
    broken = stamping(folder, tsa.url, "best-effort", callback=unplugged)
    with pytest.raises(SigningFailed, match="the module is unplugged"):
        sign(picture(), MADE, broken)
    assert broken.paused_until == 0
