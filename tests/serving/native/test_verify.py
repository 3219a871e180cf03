"""/v1/verify and /verify: what a picture says of itself, asked by anybody."""

import base64
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import crc32

import httpx
import pytest
from PIL import Image
from tests.serving.conftest import serving, settings_in
from tests.serving.test_marked_doors import SMALL, job, with_watermark_key
from tests.serving.test_sight import file_of
from typer.testing import CliRunner

from safelight.cli.main import app
from safelight.settings import Settings
from safelight.trust.credentials import trusted_roots
from safelight.trust.facts import TRAINED
from safelight.trust.statements import read_statement
from safelight.trust.watermark.embed import embed
from safelight.trust.watermark.keys import Keyring


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verify")


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    with serving(settings_in(home).model_copy(update={"trust_detector_per_minute": 1000})) as url:
        yield url


@pytest.fixture(scope="module")
def signed(url: str) -> bytes:
    return job(url, "/v1/jobs", **SMALL)


def ask(url: str, data: bytes, **headers: str) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v1/verify", files={"file": ("a.png", data)}, headers=headers)
    return answer.raise_for_status().json()


def changed(signed: bytes) -> bytes:
    """With a text that was added afterwards."""
    text = b"tEXt" + b"Comment\0hello"
    chunk = (len(text) - 4).to_bytes(4, "big") + text + crc32(text).to_bytes(4, "big")
    return signed[:33] + chunk + signed[33:]


def layers(answer: dict[str, Any]) -> dict[str, Any]:
    return {layer["layer"]: layer for layer in answer["layers"]}


def test_a_picture_of_ours_says_what_made_it(url: str, home: Path, signed: bytes) -> None:
    answer = ask(url, signed)
    assert (answer["conclusion"], answer["generated"]) == ("marked", "yes")
    found = layers(answer)
    assert found["signature"]["state"] == "valid"
    assert found["signature"]["says"]["source_type"] == TRAINED
    assert found["metadata"]["says"]["ai_system"] == "safelight / mini"
    assert found["ledger"]["found"]
    statement = read_statement(answer.pop("report"), trusted_roots(home / "trust"))
    assert statement.trusted
    assert statement.payload == {"pictures": [answer]}


def test_metadata_alone_is_told_apart_from_a_signature(url: str, signed: bytes) -> None:
    start = signed.index(b"caBX") - 4
    size = 12 + int.from_bytes(signed[start : start + 4], "big")
    answer = ask(url, signed[:start] + signed[start + size :])
    assert (answer["conclusion"], answer["generated"]) == ("marked", "yes")
    assert "signature" in answer["missing"]
    assert layers(answer)["metadata"]["found"]


def test_a_signature_that_was_broken_is_named_and_says_nothing(url: str, signed: bytes) -> None:
    answer = ask(url, changed(signed))
    assert answer["conclusion"] == "broken"
    assert any("dataHash.mismatch" in reason for reason in layers(answer)["signature"]["reasons"])


def test_a_photograph_carries_no_marks(url: str) -> None:
    answer = ask(url, file_of("red"))
    assert (answer["conclusion"], answer["generated"]) == ("unmarked", "not said")


def test_pixels_say_it_without_metadata_and_what_is_copied_onto_another_picture_is_seen(tmp_path: Path) -> None:
    with_watermark_key(tmp_path)
    with serving(Settings(home=tmp_path, trust_watermark=True, no_keys=True, drain_s=0)) as url:
        with Image.open(BytesIO(job(url, "/v1/jobs", **SMALL | {"width": 256, "height": 256}))) as image:
            drawn = image.convert("RGB")
        stripped = BytesIO()
        drawn.save(stripped, "JPEG", quality=85)
        answer = ask(url, stripped.getvalue())
        assert (answer["conclusion"], answer["missing"]) == ("marked", ["signature", "metadata", "ledger"])
        found = layers(answer)["watermark"]
        assert (found["state"], found["says"]["content"]) == ("found", "the picture that was marked")

        keyring = Keyring.read(tmp_path / "trust" / "watermark")
        assert found["says"]["key"] == keyring.current.id
        other = Image.effect_mandelbrot((256, 256), (-2, -1.5, 1, 1.5), 60).convert("RGB")
        copied, _ = embed(other, keyring.current, found["says"]["asset"])
        file = BytesIO()
        copied.save(file, "PNG")
        answer = ask(url, file.getvalue())
        assert answer["conclusion"] == "broken"
        assert layers(answer)["watermark"]["state"] == "differs"
        assert layers(answer)["watermark"]["reasons"] == [
            "the key is known, and the content differs from what it marked"
        ]
        assert ask(url, file_of("red"))["conclusion"] == "unmarked"


def test_what_is_no_picture_is_refused(url: str) -> None:
    answer = httpx.post(f"{url}/v1/verify", files={"file": ("a.png", b"GIF89a")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_image")


def test_nothing_that_was_asked_about_is_kept(url: str, home: Path) -> None:
    data = file_of("purple")
    before = {path for path in home.rglob("*") if path.is_file()}
    ask(url, data)
    new = {path for path in home.rglob("*") if path.is_file()} - before
    assert not [path for path in new if data in path.read_bytes()]
    assert not {path for path in new if "blobs" in path.parts or "origins" in path.parts}


def test_the_page_shows_it_without_a_script_and_names_are_text(url: str, signed: bytes) -> None:
    empty = httpx.get(f"{url}/verify")
    assert "script" not in empty.text
    assert "default-src 'none'" in empty.headers["content-security-policy"]
    page = httpx.post(f"{url}/verify", files={"file": ("<script>alert(1)</script>.png", signed)})
    assert "The picture is marked, and its marks hold." in page.text
    assert "It says that a generative model made it." in page.text
    assert "&lt;script&gt;" in page.text
    assert "<script" not in page.text
    report = page.text.split("base64,")[1].split('"')[0]
    assert base64.b64decode(report).count(b".") == 2
    bad = httpx.post(f"{url}/verify", files={"file": ("a.png", b"<b>no</b>")})
    assert bad.status_code == 400
    assert "It could not be read" in bad.text


@pytest.mark.parametrize(("detector", "status"), [("public", 200), ("keys", 401), ("off", 404)])
def test_the_operator_says_who_may_ask(tmp_path: Path, detector: Any, status: int) -> None:
    settings = Settings(home=tmp_path, trust_detector=detector, trust_detector_per_minute=2, drain_s=0)
    with serving(settings) as url:
        codes = [
            httpx.post(f"{url}/v1/verify", files={"file": ("a.png", file_of("red"))}).status_code for _ in range(3)
        ]
    assert codes == [status, status, 429 if detector == "public" else status]


def test_json_is_what_the_command_prints(url: str, home: Path, signed: bytes, tmp_path: Path) -> None:
    (tmp_path / "ours.png").write_bytes(signed)
    (tmp_path / "theirs.png").write_bytes(file_of("red"))
    (tmp_path / "broken.png").write_bytes(changed(signed))
    (tmp_path / "none.png").write_bytes(b"")

    def verify(*names: str, more: tuple[str, ...] = ()) -> Any:
        words = ["verify", *(str(tmp_path / name) for name in names), *more]
        return CliRunner().invoke(app, words, env={"SAFELIGHT_HOME": str(home)})

    assert verify("ours.png").exit_code == 0
    assert verify("ours.png", "theirs.png").exit_code == 1
    assert verify("ours.png", "none.png").exit_code == 2
    assert verify("broken.png", "none.png").exit_code == 3
    said = verify("ours.png", more=("--report", str(tmp_path / "report.jws")))
    assert "made by a generative model" in said.stdout
    statement = read_statement((tmp_path / "report.jws").read_text().strip(), trusted_roots(home / "trust"))
    answer = ask(url, signed)
    [one] = statement.payload["pictures"]
    assert {**one, "time": ""} == {**{k: v for k, v in answer.items() if k != "report"}, "time": ""}
    assert json.loads(verify("ours.png", more=("--json",)).stdout)["conclusion"] == "marked"
