from pathlib import Path

import pytest
from tests.cli.conftest import Call
from tests.serving.test_marked_doors import with_watermark_key

from safelight.trust.watermark.keys import Keyring


def test_a_mark_is_found_after_its_key_was_replaced(
    safelight: Call, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFELIGHT_TRUST_WATERMARK", "true")
    with_watermark_key(home)
    size = ("--steps", "2", "--width", "128", "--height", "128", "--seed", "7")
    assert safelight("generate", "apple", *size, "--metadata", "none", "--out", str(tmp_path / "out")).exit_code == 0
    [file] = (tmp_path / "out").iterdir()
    [first] = Keyring.read(home / "trust" / "watermark").keys
    assert safelight("trust", "rotate", "--watermark").exit_code == 0
    assert Keyring.read(home / "trust" / "watermark").current.id != first.id
    said = safelight("verify", str(file))
    assert said.exit_code == 0
    assert f"key: {first.id}" in said.stdout
