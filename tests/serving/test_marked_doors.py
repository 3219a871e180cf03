"""Every door that a finished picture leaves by: each file is signed, says what it is, and names what it was made of."""

import asyncio
import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client
from mcp.types import ImageContent
from PIL import Image
from tests.serving.conftest import ended, serving, settings_in
from tests.serving.test_sight import file_of
from typer.testing import CliRunner

from safelight import api
from safelight.cli.main import app
from safelight.errors import SigningFailed
from safelight.serving.mcp import mcp
from safelight.serving.mcp.mcp import Api, mcp_server
from safelight.settings import Settings
from safelight.studio import open_studio
from safelight.trust.credentials import trusted_roots
from safelight.trust.facts import COMPOSITE_TRAINED, TRAINED
from safelight.trust.signer import Signer, make_context
from safelight.trust.verify import Report, verify
from safelight.trust.watermark.detect import detect
from safelight.trust.watermark.keys import Keyring

SMALL: dict[str, Any] = {"prompt": "a red apple", "seed": 7, "steps": 2, "width": 128, "height": 128}
A1111 = {**SMALL, "sampler_name": "Euler"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_watermark_key(tmp_path_factory.mktemp("marked"))


def with_watermark_key(home: Path) -> Path:
    """Whether a mark is read does not hang on which key a run makes."""
    folder = home / "trust" / "watermark"
    folder.mkdir(parents=True)
    (folder / "0001.key").write_text("5a" * 32 + "\n")
    return home


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    with serving(settings_in(home).model_copy(update={"trust_watermark": True})) as url:
        yield url


@pytest.fixture(scope="module")
def ask(home: Path) -> Callable[[bytes], Report]:
    """What a file says of itself, to a verifier that trusts the server's root."""
    limits = {"max_pixels": 10**8, "max_file_bytes": 10**8}
    return lambda data: verify(data, make_context(trusted_roots(home / "trust")), **limits)


def watermark_in(data: bytes, home: Path) -> str | None:
    """The asset id that the pixels carry."""
    with Image.open(BytesIO(data)) as image:
        return detect(image.convert("RGB"), Keyring.read(home / "trust" / "watermark")).asset


def asset_in(found: Report) -> str:
    """The asset id in the signed part."""
    manifest = found.signature.manifest["manifests"][found.signature.manifest["active_manifest"]]
    [mark] = [one for one in manifest["assertions"] if one["label"] == "org.safelight.watermark"]
    return mark["data"]["asset"]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def job(url: str, path: str, **body: Any) -> bytes:
    with httpx.Client(base_url=url) as client:
        done = ended(client, client.post(path, json=body).raise_for_status().json()["id"])
        assert done["state"] == "done", done
        return client.get(f"/v1/files/{done['asset_id']}").content


def upload(url: str, data: bytes) -> str:
    return httpx.post(f"{url}/v1/files", files={"file": data}).raise_for_status().json()["id"]


def openai(url: str, **body: Any) -> list[bytes]:
    sent = {"prompt": "a red apple", "size": "128x128", "steps": 2, "response_format": "b64_json"} | body
    data = httpx.post(f"{url}/v1/images/generations", json=sent).raise_for_status().json()["data"]
    return [base64.b64decode(one["b64_json"]) if one.get("b64_json") else httpx.get(one["url"]).content for one in data]


def openai_edit(url: str, data: bytes) -> bytes:
    form = {"prompt": "a red apple", "steps": "2", "size": "128x128", "response_format": "b64_json"}
    answer = httpx.post(f"{url}/v1/images/edits", data=form, files={"image": ("a.png", data, "image/png")})
    return base64.b64decode(answer.raise_for_status().json()["data"][0]["b64_json"])


def openai_stream(url: str) -> bytes:
    body = {"prompt": "a red apple", "size": "128x128", "steps": 2, "stream": True, "partial_images": 1}
    text = httpx.post(f"{url}/v1/images/generations", json=body).raise_for_status().text
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]
    assert events[-1]["type"] == "image_generation.completed"
    return base64.b64decode(events[-1]["b64_json"])


def sdapi(url: str, path: str, **body: Any) -> bytes:
    answer = httpx.post(f"{url}/sdapi/v1/{path}", json=body).raise_for_status().json()
    return base64.b64decode(answer["images"][0] if "images" in answer else answer["image"])


def by_mcp(url: str, tool: str, **arguments: Any) -> bytes:
    async def go() -> bytes:
        async with (
            Api(Settings.from_environment(), server=url, owner=True) as opened,
            Client(mcp_server(opened, local=False)) as client,
        ):
            result = await client.call_tool(tool, arguments)
            assert not result.is_error, result.content
            [picture] = [part for part in result.content if isinstance(part, ImageContent)]
            return base64.b64decode(picture.data)

    return asyncio.run(go())


MADE_BY: dict[str, Callable[[str], bytes]] = {
    "job": lambda url: job(url, "/v1/jobs", **SMALL),
    "job as JPEG without metadata": lambda url: job(url, "/v1/jobs", **SMALL, output_format="jpeg", metadata="none"),
    "job as WebP": lambda url: job(url, "/v1/jobs", **SMALL, output_format="webp"),
    "job as AVIF": lambda url: job(url, "/v1/jobs", **SMALL, output_format="avif"),
    "OpenAI, base64": lambda url: openai(url)[0],
    "OpenAI, link": lambda url: openai(url, response_format="url")[0],
    "OpenAI, stream": openai_stream,
    "txt2img": lambda url: sdapi(url, "txt2img", **A1111),
    "MCP": lambda url: by_mcp(url, "generate_image", **SMALL),
}


@pytest.mark.parametrize("door", list(MADE_BY))
def test_a_picture_made_of_words_says_so(url: str, home: Path, ask: Callable[[bytes], Report], door: str) -> None:
    data = MADE_BY[door](url)
    found = ask(data)
    assert (found.signature.state, found.signature.reasons) == ("valid", ())
    assert found.signature.actions == ("c2pa.created", "c2pa.watermarked.unbound")
    assert found.signature.source_types == (TRAINED,)
    assert found.metadata.source_type == TRAINED
    if data.startswith(b"\x89PNG"):  # below 384 px, a mark is not promised to outlive compression
        assert watermark_in(data, home) == asset_in(found), "the pixels and the manifest name the same asset"
    assert "red apple" not in json.dumps(dict(found.signature.manifest)), "no prompt in what is signed"


CHANGED_BY: dict[str, Callable[[str, bytes], bytes]] = {
    "job": lambda url, data: job(url, "/v1/jobs", **SMALL, init=upload(url, data), strength=0.5),
    "job with a mask": lambda url, data: job(
        url, "/v1/jobs", **SMALL, init=upload(url, data), mask=upload(url, file_of("white"))
    ),
    "job that extends": lambda url, data: job(
        url, "/v1/jobs", prompt="x", steps=2, init=upload(url, data), extend={"left": 64}
    ),
    "OpenAI, edit": openai_edit,
    "img2img": lambda url, data: sdapi(url, "img2img", **A1111, init_images=[b64(data)]),
    "img2img that fills": lambda url, data: sdapi(
        url, "img2img", **A1111, init_images=[b64(data)], mask=b64(file_of("white")), inpainting_fill=0
    ),
}


@pytest.mark.parametrize("door", list(CHANGED_BY))
def test_a_picture_made_of_a_signed_one_names_it(url: str, ask: Callable[[bytes], Report], door: str) -> None:
    signed = job(url, "/v1/jobs", **SMALL)
    found = ask(CHANGED_BY[door](url, signed))
    assert (found.signature.state, found.signature.reasons) == ("valid", ())
    assert found.signature.source_types == (COMPOSITE_TRAINED,)
    [parent] = [one for one in found.signature.ingredients if one.relationship == "parentOf"]
    assert (parent.signature, parent.reasons) == ("valid", ())
    assert found.metadata.source_type == COMPOSITE_TRAINED


def test_a_parent_that_was_tampered_with_is_seen_in_its_child(url: str, ask: Callable[[bytes], Report]) -> None:
    signed = job(url, "/v1/jobs", **SMALL)
    with Image.open(BytesIO(signed)) as image:
        pixels = image.convert("RGB")
    pixels.putpixel((0, 0), (1, 2, 3))
    forged = BytesIO()
    pixels.save(forged, "PNG")
    start = signed.index(b"caBX") - 4
    box = signed[start : start + 12 + int.from_bytes(signed[start : start + 4], "big")]
    file = forged.getvalue()
    found = ask(CHANGED_BY["job"](url, file[:33] + box + file[33:])).signature  # behind IHDR, where C2PA has it
    assert found.state == "valid"
    [parent] = [one for one in found.ingredients if one.relationship == "parentOf"]
    assert parent.signature == "invalid"
    assert any("assertion.dataHash.mismatch" in reason for reason in parent.reasons)


ENLARGED_BY: dict[str, Callable[[str, bytes], bytes]] = {
    "upscale": lambda url, data: job(url, "/v1/upscales", init=upload(url, data), scale=2),
    "extras": lambda url, data: sdapi(
        url, "extra-single-image", image=b64(data), upscaling_resize=2, upscaler_1="Lanczos"
    ),
    "extras that crop": lambda url, data: sdapi(
        url, "extra-single-image", image=b64(data), resize_mode=1, upscaling_resize_w=96, upscaling_resize_h=64,
        upscaler_1="Lanczos",
    ),
    "extras that shrink": lambda url, data: sdapi(
        url, "extra-single-image", image=b64(data), upscaling_resize=0.5, upscaler_1="Lanczos"
    ),
    "smaller copy": lambda url, data: httpx.get(f"{url}/v1/files/{upload(url, data)}?max_side=64").content,
    "MCP": lambda url, data: by_mcp(url, "upscale_image", image=upload(url, data), scale=2),
}  # fmt: skip


@pytest.mark.parametrize("door", list(ENLARGED_BY))
def test_a_picture_of_another_size_says_what_it_was_made_of(
    url: str, ask: Callable[[bytes], Report], door: str
) -> None:
    found = ask(ENLARGED_BY[door](url, job(url, "/v1/jobs", **SMALL)))
    assert (found.signature.state, found.signature.reasons) == ("valid", ())
    [parent] = [one for one in found.signature.ingredients if one.relationship == "parentOf"]
    assert parent.signature == "valid"
    assert found.metadata.source_type == TRAINED


def test_a_photograph_that_is_enlarged_stays_one(url: str, ask: Callable[[bytes], Report]) -> None:
    found = ask(job(url, "/v1/upscales", init=upload(url, file_of("red")), scale=2))
    assert found.signature.state == "valid"
    assert found.signature.source_types == ()
    assert found.metadata.source_type == ""


def test_large_pictures_in_mcp_are_marked(
    url: str, ask: Callable[[bytes], Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp, "MAX_INLINE_BYTES", 100)
    data = by_mcp(url, "generate_image", **SMALL)
    assert data[:2] == b"\xff\xd8"
    assert ask(data).signature.state == "valid"


def test_the_command_line_and_python(
    url: str, home: Path, ask: Callable[[bytes], Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del url
    monkeypatch.setenv("SAFELIGHT_HOME", str(home))
    monkeypatch.setenv("SAFELIGHT_TRUST_WATERMARK", "true")

    def safelight(*words: str) -> Path:
        said = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
        assert said.exit_code == 0, said.output
        return Path(json.loads(said.stdout.splitlines()[-1])["path"])

    size = ("--steps", "2", "--width", "128", "--height", "128")
    drawn = safelight("generate", "a red apple", *size, "--out", str(tmp_path / "out"))
    replayed = safelight("replay", str(drawn), "--out", str(tmp_path / "again"))
    larger = safelight("upscale", str(drawn), "--out", str(tmp_path / "large"))
    for file in (drawn, replayed, larger):
        assert ask(file.read_bytes()).signature.state == "valid", file
    [parent] = [one for one in ask(larger.read_bytes()).signature.ingredients if one.relationship == "parentOf"]
    assert parent.signature == "valid"
    with open_studio(Settings(home=home, trust_watermark=True)) as studio:
        [picture] = api.generate("a cup", steps=2, width=128, height=128, studio=studio)
    assert ask(picture.path.read_bytes()).signature.state == "valid"
    assert ask(picture._repr_png_()).signature.state == "valid"


def test_a_picture_that_is_drawn_again_is_the_same_file(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        ids = [ended(client, client.post("/v1/jobs", json=SMALL).json()["id"])["asset_id"] for _ in range(2)]
    assert ids[0] == ids[1], "signing twice makes no second picture"


def test_while_nothing_signs_nothing_leaves_and_accepted_jobs_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signing, failed = Signer.sign, list[str]()

    def fails_twice(self: Signer, *given: Any, **more: Any) -> Any:
        if len(failed) < 2:
            failed.append("once more")
            raise SigningFailed("the key service does not answer")
        return signing(self, *given, **more)

    monkeypatch.setattr(Signer, "sign", fails_twice)
    with serving(settings_in(tmp_path)) as url, httpx.Client(base_url=url) as client:
        done = ended(client, client.post("/v1/jobs", json=SMALL).raise_for_status().json()["id"])
        assert (done["state"], len(failed)) == ("done", 2)
        data = client.get(f"/v1/files/{done['asset_id']}").content
        assert b"caBX" in data
    stored = list((tmp_path / "blobs").rglob("*.png"))
    assert len(stored) == 1, "what was not signed was not stored"


def test_marks_are_counted(url: str) -> None:
    job(url, "/v1/jobs", **SMALL)
    text = httpx.get(f"{url}/metrics").text
    assert 'safelight_marks_total{layer="signature",outcome="signed"}' in text


@pytest.mark.needs("exiftool")
def test_exiftool_reads_the_manifest(url: str, tmp_path: Path) -> None:
    for kind in ("png", "jpeg"):  # 12.57, of Debian 12, does not see C2PA in WebP and AVIF
        file = tmp_path / f"picture.{kind}"
        file.write_bytes(job(url, "/v1/jobs", **SMALL, output_format=kind))
        said = subprocess.run(["exiftool", "-j", str(file)], check=True, capture_output=True, text=True)
        [tags] = json.loads(said.stdout)
        assert tags["ActionsAction"][0] == "c2pa.created"
        assert tags["DigitalSourceType"] == TRAINED
