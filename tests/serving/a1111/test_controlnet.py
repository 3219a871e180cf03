"""Control over HTTP: ControlNet's extension of AUTOMATIC1111 as webuiapi sends it, and our own jobs."""

import base64
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import webuiapi
from PIL import Image
from tests.control_files import (
    colours_picture,
    controlnet,
    shapes_picture,
    write_encoder,
    write_ip_adapter,
    write_ldm,
)
from tests.serving.conftest import ended, serving, settings_in
from tests.tiny_models import load, write_sd1

from safelight.assets.read_metadata import read_metadata
from safelight.imaging import outlines
from safelight.models.checkpoints.digest import file_sum
from safelight.spec import ImageToImage, TextToImage

SMALL: dict[str, Any] = {"prompt": "an apple", "seed": 7, "steps": 2, "width": 64, "height": 64}
TINY = {"override_settings": {"sd_model_checkpoint": "tiny"}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model named tiny, a ControlNet, an IP-Adapter and its encoder."""
    home = tmp_path_factory.mktemp("control")
    model = load(write_sd1(home / "models" / "tiny"))
    (home / "controlnets").mkdir()
    write_ldm(home / "controlnets" / "control_v11p_sd15_canny.safetensors", controlnet(model))
    adapters = home / "ip-adapters"
    write_ip_adapter(adapters / "ip-adapter_sd15.safetensors", model, encoder=write_encoder(adapters / "image_encoder"))
    return home


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    with serving(settings_in(home)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture
def api(url: str) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1")


def as_base64(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def spec_in(encoded: str) -> Any:
    read = read_metadata(base64.b64decode(encoded), max_pixels=10**6, max_file_bytes=10**7)
    return read.spec, read.raw["parameters"]


UNIT = {
    "image": as_base64(colours_picture(3, 64, 64)),
    "module": "canny",
    "model": "control_v11p_sd15_canny [d14c016b]",
    "weight": 0.8,
    "threshold_a": 20,
    "threshold_b": 60,
    "guidance_end": 0.5,
    "control_mode": "ControlNet is more important",
    "resize_mode": "Just Resize",
}


def post(client: httpx.Client, path: str, body: dict[str, Any], *units: Any) -> httpx.Response:
    more = {"alwayson_scripts": {"controlnet": {"args": list(units)}}}
    return client.post(f"/sdapi/v1/{path}", json=SMALL | TINY | body | more)


def test_a_unit_is_drawn_and_the_hint_comes_after_the_picture(client: httpx.Client, home: Path) -> None:
    answer = post(client, "txt2img", {}, UNIT).raise_for_status().json()
    assert len(answer["images"]) == 2
    spec, infotext = spec_in(answer["images"][0])
    assert isinstance(spec, TextToImage)
    [use] = spec.controls
    assert (use.model, use.weight, use.start, use.end) == ("control_v11p_sd15_canny", 0.8, 0.0, 0.5)
    assert (use.mode, use.fit, use.preprocessor, use.thresholds) == ("control", "stretch", "canny", (20.0, 60.0))
    assert use.digest == file_sum(home / "controlnets" / "control_v11p_sd15_canny.safetensors")
    assert 'ControlNet 0: "Module: canny, Model: control_v11p_sd15_canny [' in infotext
    hint = Image.open(BytesIO(base64.b64decode(answer["images"][1]))).convert("RGB")
    assert hint.tobytes() == outlines.canny(colours_picture(3, 64, 64), (20, 60)).tobytes()
    plain = client.post("/sdapi/v1/txt2img", json=SMALL | TINY).raise_for_status().json()
    assert plain["images"][0] != answer["images"][0]
    quiet = post(client, "txt2img", {}, UNIT | {"save_detected_map": False}, {"enabled": False}, None).json()
    assert quiet["images"] == answer["images"][:1]


def test_units_are_read_however_they_are_sent(client: httpx.Client) -> None:
    """With names, in a list or alone, or by position, after whether it is img2img and whether a person asks."""
    positional = [True, "canny", UNIT["model"], 0.8, {"image": UNIT["image"]}, False, "Just Resize", False, False, 64]
    positional += [20, 60, 0.0, 0.5, True]
    named = {"image": [UNIT["image"]], "guessmode": True, "lowvram": False, "resize_mode": 0}
    named = {name: value for name, value in UNIT.items() if name != "control_mode"} | named
    drawn: list[Any] = []
    for args in ([named], named, [None, False, named], positional, [False, False, *positional]):
        body = SMALL | TINY | {"alwayson_scripts": {"ControlNet": {"args": args}}}
        answer = client.post("/sdapi/v1/txt2img", json=body).raise_for_status().json()
        drawn.append(spec_in(answer["images"][0])[0])
    assert drawn[0].controls[0].mode == "control"
    assert drawn[0].controls[0].thresholds == (20.0, 60.0)
    assert [spec == drawn[0] for spec in drawn] == [True] * 5
    off = [False, False, False, *positional[1:]]
    body = SMALL | TINY | {"alwayson_scripts": {"ControlNet": {"args": off}}}
    assert not spec_in(client.post("/sdapi/v1/txt2img", json=body).json()["images"][0])[0].controls


def test_webuiapi_sends_units(api: webuiapi.WebUIApi) -> None:
    unit = webuiapi.ControlNetUnit(image=shapes_picture(1), module="none", model="control_v11p_sd15_canny")
    # Left to itself, webuiapi keeps the units for all its calls to come, in a default that it changes.
    tiny: dict[str, Any] = TINY | {"alwayson_scripts": {}}
    result = api.txt2img(**SMALL, **tiny, controlnet_units=[unit, unit])
    assert len(result.images) == 3
    tiny = TINY | {"alwayson_scripts": {}}
    result = api.img2img(images=[shapes_picture(2)], **SMALL, **tiny, controlnet_units=[unit])
    assert len(result.images) == 2
    assert "control_v11p_sd15_canny" in api.controlnet_model_list()
    assert "canny" in api.controlnet_module_list()
    assert api.controlnet_version() == 3
    found = api.controlnet_detect(images=[shapes_picture(1)], module="invert")
    assert found.image.convert("RGB").tobytes() == outlines.invert(shapes_picture(1)).tobytes()


def test_a_unit_without_picture_takes_the_one_that_is_started_from(client: httpx.Client) -> None:
    inits = [as_base64(shapes_picture(seed)) for seed in (1, 2)]
    unit = {name: value for name, value in UNIT.items() if name != "image"}
    answer = post(client, "img2img", {"init_images": inits, "batch_size": 2}, unit).raise_for_status().json()
    specs = [spec_in(image)[0] for image in answer["images"][:2]]
    assert all(isinstance(spec, ImageToImage) and spec.controls[0].image == spec.init for spec in specs)
    assert specs[0].init != specs[1].init


def test_a_unit_with_an_ip_adapter_is_a_picture_prompt(client: httpx.Client) -> None:
    unit = {
        "image": {"image": UNIT["image"]},
        "module": "ip-adapter_clip_sd15",
        "model": "ip-adapter_sd15",
        "weight": 0.6,
    }
    answer = post(client, "txt2img", {}, unit).raise_for_status().json()
    assert len(answer["images"]) == 1
    [use] = spec_in(answer["images"][0])[0].picture_prompts
    assert (use.model, use.weight, use.encoder) == ("ip-adapter_sd15", 0.6, "image_encoder")


@pytest.mark.parametrize(
    ("unit", "says"),
    [
        ({"model": "None"}, "model_list"),
        ({"model": "control_v11p_sd15_cany"}, "did you mean 'control_v11p_sd15_canny'"),
        ({"model": "/etc/passwd.safetensors"}, "no ControlNet or T2I-Adapter named"),
        ({"module": "openpose_full"}, "no module 'openpose_full'"),
        ({"image": None}, "no image"),
        ({"mask": UNIT["image"]}, "mask"),
        ({"weight": 3}, "weight"),
        ({"control_mode": "mine"}, "control_mode"),
        ({"union_control_type": "Sideways"}, "union_control_type"),
        ({"union_control_type": "OpenPose"}, "has no hint kind 'pose'"),
        ({"guidance_start": 0.8}, "guidance_start: 0.8 must be below guidance_end 0.5"),
    ],
)
def test_unsupported_fields_are_refused(client: httpx.Client, unit: dict[str, Any], says: str) -> None:
    answer = post(client, "txt2img", {}, UNIT | unit)
    assert answer.status_code in (400, 422), answer.text
    assert says in answer.json()["detail"]


def test_a_net_for_another_model_is_refused_before_a_job_is_accepted(client: httpx.Client) -> None:
    body = {"override_settings": {"sd_model_checkpoint": "mini"}}
    answer = post(client, "txt2img", body, UNIT)
    assert answer.status_code == 400
    assert "does not fit mini (sd1)" in answer.json()["detail"]


def test_detect_shows_what_a_net_would_be_shown(client: httpx.Client) -> None:
    body = {"controlnet_module": "canny", "controlnet_input_images": [UNIT["image"]] * 2, "controlnet_threshold_a": 20}
    found = client.post("/controlnet/detect", json=body).raise_for_status().json()
    assert found["info"] == "Success"
    assert len(found["images"]) == 2
    refused = client.post("/controlnet/detect", json=body | {"controlnet_module": "openpose"})
    assert refused.status_code == 422
    assert "canny" in refused.json()["detail"]
    assert client.post("/controlnet/detect", json={"controlnet_module": "canny"}).status_code == 422
    assert client.get("/controlnet/settings").json() == {"control_net_unit_count": 10}
    assert "ip-adapter_sd15" in client.get("/controlnet/control_types").json()["control_types"]["All"]["model_list"]


def test_jobs_take_controls_by_the_id_of_an_upload(client: httpx.Client) -> None:
    file = base64.b64decode(UNIT["image"])
    picture = client.post("/v1/files", files={"file": ("a.png", file, "image/png")}).raise_for_status().json()["id"]
    fields = SMALL | {
        "model": "tiny",
        "controls": [{"model": "control_v11p_sd15_canny", "image": picture, "preprocessor": "soft-edge"}],
        "picture_prompts": [{"model": "ip-adapter_sd15", "image": picture, "weight": 0.5}],
    }
    job = client.post("/v1/jobs", json=fields).raise_for_status().json()
    done = ended(client, job["id"])
    assert done["state"] == "done", done["error"]
    assert done["spec"]["controls"][0]["hint"] != picture
    openai = {
        "size": "64x64",
        "response_format": "b64_json",
        **{name: fields[name] for name in fields if name != "height"},
    }
    answer = client.post("/v1/images/generations", json=openai).raise_for_status().json()
    assert spec_in(answer["data"][0]["b64_json"])[0].controls[0].hint == done["spec"]["controls"][0]["hint"]
    for broken, says in (
        ({"controls": [{"model": "nowhere", "image": picture}]}, "no ControlNet"),
        ({"controls": [{**fields["controls"][0], "preprocessor": "cany"}]}, "did you mean 'canny'"),
        ({"controls": [{**fields["controls"][0], "thresholds": [1, 2]}]}, "thresholds are for canny"),
        ({"controls": [{**fields["controls"][0], "digest": "0" * 64}]}, "the picture would differ"),
        ({"controls": [{**fields["controls"][0], "image": "0" * 64}]}, "0000"),
        ({"picture_prompts": [{**fields["picture_prompts"][0], "encoder": "nowhere"}]}, "no image encoder named"),
    ):
        answer = client.post("/v1/jobs", json=fields | broken)
        assert answer.is_client_error, answer.text
        assert says in answer.json()["error"]["message"]
