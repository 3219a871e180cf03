import hashlib
import hmac
import os
from pathlib import Path

import pytest

from safelight.errors import StorageFailed
from safelight.trust.watermark.keys import Keyring, WatermarkKey, asset_id

KEY = WatermarkKey(secret=bytes(range(32)))


def test_an_asset_id_is_the_first_64_bits_of_the_hmac() -> None:
    digest = hashlib.sha256(b"spec").hexdigest()
    assert asset_id(KEY, digest) == hmac.new(bytes(range(32)), digest.encode(), "sha256").hexdigest()[:16]


def test_a_key_has_a_name_and_does_not_show_its_secret() -> None:
    assert len(KEY.id) == 8
    assert KEY.id != WatermarkKey(secret=bytes(32)).id
    assert KEY.secret.hex() not in repr(KEY)
    assert repr(KEY.secret) not in repr(KEY)


def test_the_first_opening_makes_a_key_that_stays(tmp_path: Path) -> None:
    first = Keyring.open(tmp_path / "watermark")
    assert Keyring.open(tmp_path / "watermark") == first
    assert len(first.current.secret) == 32
    [file] = (tmp_path / "watermark").iterdir()
    assert file.name == "0001.key"
    if os.name != "nt":
        assert file.stat().st_mode & 0o777 == 0o600


def test_rotation_adds_a_key_and_keeps_the_old_ones(tmp_path: Path) -> None:
    old = Keyring.open(tmp_path)
    new = Keyring.rotate(tmp_path)
    assert new.keys == (*old.keys, new.current)
    assert new.current != old.current
    assert Keyring.open(tmp_path) == new


def test_a_damaged_key_is_named_and_not_replaced(tmp_path: Path) -> None:
    Keyring.open(tmp_path)
    (tmp_path / "0001.key").write_text("half a k")
    with pytest.raises(StorageFailed, match=r"0001\.key is not a watermark key"):
        Keyring.open(tmp_path)
    assert (tmp_path / "0001.key").read_text() == "half a k"


def test_reading_makes_no_key(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="no watermark key"):
        Keyring.read(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_of_two_processes_that_make_the_first_key_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.trust.watermark.keys.key_files", lambda folder: [])
    for _ in range(2):
        with pytest.raises(StorageFailed, match="no watermark key"):  # since nothing is listed
            Keyring.open(tmp_path)
    monkeypatch.undo()
    assert len(Keyring.read(tmp_path).keys) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["0001.key"]
