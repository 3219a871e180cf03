"""Requests as SillyTavern, LibreChat and Open WebUI send them, and answers read as they read them.

The bodies are theirs field by field; only pictures are smaller and steps fewer than people choose.
"""

import base64
import json
import threading
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image
from tests.serving.conftest import ask_and_go

from safelight.serving.a1111.options import Options
from safelight.serving.a1111.txt2img import TextToImageBody
from safelight.spec import parse_draft

SIZE = {"steps": 2, "width": 64, "height": 64}


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server) as client:
        yield client


def size_of(image: str) -> tuple[int, int]:
    assert "," not in image, "clients decode it as it is"
    return Image.open(BytesIO(base64.b64decode(image, validate=True))).size


def test_librechat(client: httpx.Client) -> None:
    """api/app/clients/tools/structured/StableDiffusion.js: no sampler, no seed, and `info` is read without a check."""
    payload = {
        "prompt": "red apple, wooden table, photo, sharp, daylight, high detail, 8k",
        "negative_prompt": "blurry, low quality, cartoon, text, watermark, frame, deformed",
        "cfg_scale": 4.5,
        "steps": 22,
        "width": 1024,
        "height": 1024,
    }
    draft = parse_draft(TextToImageBody.model_validate(payload).fields(Options()))
    assert (draft.width, draft.height, draft.steps, draft.guidance) == (1024, 1024, 22, 4.5)
    answer = client.post("/sdapi/v1/txt2img", json=payload | SIZE).raise_for_status().json()
    image = base64.b64decode(answer["images"][0].split(",", 1)[0])
    assert Image.open(BytesIO(image)).size == (64, 64)
    info = json.loads(answer["info"])
    assert (info["width"], info["height"]) == (64, 64)
    assert isinstance(info["seed"], int)
    assert info["infotexts"][0].split("\n").pop().startswith("Steps: 2, Sampler: Euler,")


SILLYTAVERN_AUTH = "Basic"
"""What arrives where no user and password are set."""
SILLYTAVERN = {
    # Its own server passes these on.
    "url": "http://localhost:7860",
    "auth": "",
    "prompt": "best quality, absurdres, aesthetic, a red apple",
    "negative_prompt": "lowres, bad anatomy, bad hands",
    "sampler_name": "DDIM",
    "scheduler": "normal",
    "steps": 2,
    "cfg_scale": 7,
    "width": 64,
    "height": 64,
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 1.0,
    "hr_additional_modules": [],
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 0,
    "override_settings": {"CLIP_stop_at_last_layers": 1},
    "override_settings_restore_afterwards": True,
    "clip_skip": 1,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}


class SillyTavern:
    """src/endpoints/stable-diffusion.js."""

    def __init__(self, client: httpx.Client, auth: str = SILLYTAVERN_AUTH) -> None:
        self.client = client
        self.headers = {"Authorization": auth}

    def get(self, path: str) -> Any:
        answer = self.client.get(f"/sdapi/v1/{path}", headers=self.headers)
        return answer.json() if answer.is_success else None

    def post(self, path: str, body: Any = None) -> httpx.Response:
        return self.client.post(f"/sdapi/v1/{path}", json=body, headers=self.headers)


def test_sillytavern_connects(client: httpx.Client) -> None:
    tavern = SillyTavern(client)
    assert "forge_preset" not in tavern.get("options")
    upscalers = [item["name"] for item in tavern.get("upscalers")]
    latent = [item["name"] for item in tavern.get("latent-upscale-modes")]
    upscalers[1:1] = latent
    assert upscalers[:2] == ["None", "Latent"]
    vaes = next(found for path in ("sd-vae", "sd-modules") if (found := tavern.get(path)) is not None)
    assert [item["model_name"] for item in vaes] == []
    assert "DDIM" in [item["name"] for item in tavern.get("samplers")]
    assert "karras" in [item["name"] for item in tavern.get("schedulers")]
    titles = [item["title"] for item in tavern.get("sd-models")]
    assert tavern.get("options")["sd_model_checkpoint"] in titles

    assert tavern.post("options", {"sd_model_checkpoint": titles[0]}).is_success
    progress = tavern.get("progress")
    assert progress["progress"] == 0.0
    assert progress["state"]["job_count"] == 0


def test_sillytavern_draws(client: httpx.Client) -> None:
    tavern = SillyTavern(client)
    answer = tavern.post("txt2img", SILLYTAVERN)
    assert answer.is_success, answer.text
    assert size_of(answer.json()["images"][0]) == (64, 64)
    large = SILLYTAVERN | {"enable_hr": True, "hr_scale": 2, "seed": 5}
    assert size_of(tavern.post("txt2img", large).json()["images"][0]) == (128, 128)
    face = {"alwayson_scripts": {"ADetailer": {"args": [True, True, {"ad_model": "face_yolov8n.pt"}]}}}
    refused = tavern.post("txt2img", SILLYTAVERN | face)
    assert not refused.is_success
    assert "ADetailer" in refused.text


def test_sillytaverns_stop_button_stops_its_own_user_only(keyed_server: tuple[str, dict[str, str]]) -> None:
    """It aborts its request and posts /interrupt at the same time."""
    url, keys = keyed_server
    auths = ["Basic " + base64.b64encode(f"user:{key}".encode()).decode() for key in list(keys.values())[:2]]
    with httpx.Client(base_url=url) as client, httpx.Client(base_url=url) as other:
        stopper, drawer = SillyTavern(client, auths[0]), SillyTavern(other, auths[1])
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(drawer.post("txt2img", SILLYTAVERN | {"steps": 30})))
        thread.start()
        ask_and_go(f"{url}/sdapi/v1/txt2img", SILLYTAVERN | {"steps": 900}, headers=stopper.headers)
        assert stopper.post("interrupt").is_success
        thread.join()
    assert answers[0].is_success
    assert size_of(answers[0].json()["images"][0]) == (64, 64)


def test_open_webui(client: httpx.Client) -> None:
    """backend/open_webui/routers/images.py with the engine `automatic1111`, and no user and password set."""
    headers = {"authorization": ""}
    models = client.get("/sdapi/v1/sd-models", headers=headers).json()
    listed = [{"id": model["title"], "name": model["model_name"]} for model in models]
    assert "mini" in [model["name"] for model in listed]
    # An administrator's choice of a model sends all options back with one changed.
    options = client.get("/sdapi/v1/options", headers=headers).json()
    options["sd_model_checkpoint"] = listed[0]["id"]
    client.post("/sdapi/v1/options", json=options, headers=headers).raise_for_status()
    assert client.get("/sdapi/v1/options", headers=headers).json()["sd_model_checkpoint"] == listed[0]["id"]

    data = {"prompt": "a red apple", "batch_size": 2, "width": 64, "height": 64, "steps": 2, "negative_prompt": "blue"}
    # What an administrator may write under "additional parameters".
    extra = {"cfg_scale": 5, "sampler_name": "Euler", "scheduler": "Karras"}
    answer = client.post("/sdapi/v1/txt2img", json=data | extra, headers=headers).json()
    assert [size_of(image) for image in answer["images"]] == [(64, 64)] * 2
    assert isinstance(answer["info"], str)


def test_open_webui_with_openai(client: httpx.Client) -> None:
    """The same file with the engine `openai`: first the models, then JSON without a seed, then multipart."""
    headers = {"Authorization": "Bearer sk-anything", "X-OpenWebUI-User-Name": "ann"}
    data = {"model": "dall-e-2", "prompt": "a red apple", "n": 1, "size": "64x64", "response_format": "b64_json"}
    answer = client.post("/v1/images/generations", json=data, headers=headers).raise_for_status().json()
    assert size_of(answer["data"][0]["b64_json"]) == (64, 64)
    # Models that match its pattern of URLs are asked for without a format, and either kind of answer is read.
    data.pop("response_format")
    [image] = client.post("/v1/images/generations", json=data, headers=headers).raise_for_status().json()["data"]
    fetched = client.get(image["url"], headers=headers)
    assert fetched.headers["content-type"] == "image/png"

    files = {"image": ("image.png", fetched.content, "image/png")}
    form = {"model": "mini", "prompt": "an orange", "n": "1", "size": "64x64", "response_format": "b64_json"}
    edited = client.post("/v1/images/edits", data=form, files=files, headers=headers).raise_for_status().json()
    assert size_of(edited["data"][0]["b64_json"]) == (64, 64)


def test_librechat_with_openai(client: httpx.Client) -> None:
    """OpenAIImageTools.js asks through JavaScript's SDK and edits with a form of its own; DALLE3.js reads a link."""
    fields = {"model": "gpt-image-1", "prompt": "a red apple", "n": 1, "background": "auto", "output_format": "png"}
    # Undefined fields are left out, and sizes and qualities it knows are `auto`.
    answer = client.post("/v1/images/generations", json=fields | {"quality": "auto", "size": "auto"})
    image = answer.raise_for_status().json()["data"][0]["b64_json"]
    assert size_of(image) == (128, 128)

    picture = ("red-apple.png", base64.b64decode(image), "image/png")
    form = {"model": "gpt-image-1", "prompt": "an orange", "quality": "auto", "size": "auto"}
    answer = client.post("/v1/images/edits", data=form, files=[("image[]", picture), ("image[]", picture)])
    assert size_of(answer.raise_for_status().json()["data"][0]["b64_json"]) == (128, 128)

    dalle = {"model": "dall-e-3", "quality": "standard", "style": "vivid", "size": "64x64", "prompt": "a cat", "n": 1}
    url = client.post("/v1/images/generations", json=dalle).raise_for_status().json()["data"][0]["url"]
    # It names its own file by what the link's path ends in.
    assert url.partition("?")[0].endswith(".png")
    assert client.get(url).headers["content-type"] == "image/png"
