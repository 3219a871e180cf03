import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.trust.authority import issue
from tests.trust.pictures import APPLE, NOW, POLICY, picture, report

from safelight.errors import InvalidCertificate, StorageFailed
from safelight.settings import Settings
from safelight.trust import credentials as kept
from safelight.trust.credentials import (
    open_credentials,
    own_credentials,
    read_credentials,
    rotate,
    trusted_roots,
    use,
)
from safelight.trust.manifest import manifest
from safelight.trust.sign import sign
from safelight.trust.signer import Signer, make_context, open_signer

ROOT = issue("ACME root", ca=True)
SIGNER = issue("ACME pictures", ROOT)
CHAIN = SIGNER.pem + ROOT.pem


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_first_time_makes_a_certificate_and_later_ones_find_it(folder: Path) -> None:
    assert read_credentials(folder) is None
    first = open_credentials(folder)
    assert first.description.development
    assert open_credentials(folder).description == first.description
    assert {path.name: mode(path) for path in folder.glob("*.pem")} == {"signing.pem": 0o600, "authority.pem": 0o600}
    assert mode(folder) == 0o700
    assert b"PRIVATE" not in first.chain_pem + first.root_pem
    assert "PRIVATE" not in repr(first)


def test_threads_that_start_at_once_sign_with_one_certificate(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: open_credentials(folder).description.fingerprint, range(8)))
    assert len(set(found)) == 1
    assert not (folder / "former").exists()


def test_processes_that_start_at_once_sign_with_one_certificate(folder: Path) -> None:
    code = (
        "from pathlib import Path; from safelight.trust.credentials import open_credentials; "
        f"print(open_credentials(Path({str(folder)!r})).description.fingerprint)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert found == {open_credentials(folder).description.fingerprint}


def test_a_crash_between_the_files_leaves_nothing_half_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = kept.write_secret

    def crash_at_signing(path: Path, data: bytes) -> None:
        if path.name == "signing.pem":
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(kept, "write_secret", crash_at_signing)
    with pytest.raises(KeyboardInterrupt):
        open_credentials(folder)
    monkeypatch.undo()
    authority = (folder / "authority.pem").read_bytes()
    assert open_credentials(folder).root_pem in authority, "the authority that was there goes on"


@pytest.mark.parametrize("name", ["signing.pem", "authority.pem"])
def test_a_damaged_file_is_named_and_never_replaced(name: str, folder: Path) -> None:
    open_credentials(folder)
    path = folder / name
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100], b""):
        path.write_bytes(damaged)
        with pytest.raises(InvalidCertificate, match=f"{path} is damaged.*restore it from a backup"):
            rotate(folder)
        assert path.read_bytes() == damaged
    path.write_bytes(whole)
    rotate(folder)


def test_a_key_beside_a_foreign_certificate_is_found(folder: Path) -> None:
    open_credentials(folder)
    path = folder / "signing.pem"
    text = path.read_text()
    key = text[: text.index("-----BEGIN CERTIFICATE")]
    path.write_bytes(key.encode() + CHAIN)
    with pytest.raises(InvalidCertificate, match="private key and certificate do not belong together"):
        open_credentials(folder)


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageFailed, match="SAFELIGHT_HOME chooses another place, SAFELIGHT_TRUST_SIGNATURE=off"):
        open_credentials(tmp_path / "file" / "trust")
    # Tests may run as root, who may write anywhere but into a file system mounted read-only.
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(StorageFailed, match="cannot be written by this user"):
        open_credentials(tmp_path / "trust")


def test_a_folder_that_cannot_be_written_is_enough_once_there_is_a_certificate(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = open_credentials(folder)
    monkeypatch.setattr("os.access", lambda *_: False)
    assert open_credentials(folder).description == made.description


def test_ones_own_certificate_replaces_the_development_one(folder: Path) -> None:
    before = open_credentials(folder)
    own = own_credentials(folder, CHAIN, SIGNER.key_pem)
    assert open_credentials(folder).description == before.description, "nothing is written yet"
    use(own)
    after = open_credentials(folder)
    assert (after.chain_pem, after.key) == (CHAIN, SIGNER.key_pem)
    assert not after.description.development
    [former] = (folder / "former").iterdir()
    assert former.read_bytes() == before.chain_pem
    assert set(trusted_roots(folder).split(b"-----END CERTIFICATE-----\n")) >= {
        root.split(b"-----END CERTIFICATE-----\n")[0] for root in (before.root_pem, ROOT.pem)
    }
    with pytest.raises(InvalidCertificate, match="the certificate in use is your own"):
        rotate(folder)
    with pytest.raises(InvalidCertificate, match="key does not belong"):
        own_credentials(folder, CHAIN, issue("other", ROOT).key_pem)


def test_rotation_makes_a_new_certificate_and_old_pictures_still_verify(folder: Path) -> None:
    def signed() -> bytes:
        return sign(picture(), manifest(APPLE, NOW, POLICY), Signer(open_credentials(folder), POLICY)).data

    old = signed()
    first, second = open_credentials(folder), rotate(folder)
    assert first.description.fingerprint != second.description.fingerprint
    assert first.root_pem == second.root_pem
    between = signed()
    use(own_credentials(folder, CHAIN, SIGNER.key_pem))
    new = signed()
    context = make_context(trusted_roots(folder))
    said = [report(data, context).signature for data in (old, between, new)]
    assert [one.state for one in said] == ["valid"] * 3
    assert said[2].common_name == "ACME pictures"


def test_the_operators_anchors_are_trusted_too(folder: Path) -> None:
    open_credentials(folder)
    (folder / "anchors").mkdir()
    (folder / "anchors" / "acme.pem").write_bytes(ROOT.pem)
    assert ROOT.pem in trusted_roots(folder)
    (folder / "anchors" / "acme.pem").write_bytes(b"nonsense")
    with pytest.raises(InvalidCertificate, match="a PEM file is needed"):
        trusted_roots(folder)


@pytest.mark.parametrize("kind", ["es256", "es384", "ps256", "ed25519"])
def test_a_trial_signs_with_every_kind_of_key(kind: str, folder: Path) -> None:
    from tests.trust.authority import new_key

    issued = issue("ACME pictures", ROOT, key=new_key(kind))
    Signer(own_credentials(folder, issued.pem + ROOT.pem, issued.key_pem), POLICY).try_out()
    assert not folder.exists()


def test_a_server_does_not_start_with_a_certificate_that_has_expired(folder: Path, home: Path) -> None:
    from datetime import timedelta

    expired = issue("ACME pictures", ROOT, end=timedelta(hours=-1))
    (home / "trust").mkdir()
    (home / "trust" / "signing.pem").write_bytes(expired.key_pem + expired.pem + ROOT.pem)
    with pytest.raises(InvalidCertificate, match=r"expired on .*`safelight trust init --certificate FILE --key FILE`"):
        open_signer(Settings.from_environment())
    assert open_signer(Settings.from_environment(trust_signature=False)) is None
