"""What is wrong with a body is said all at once and in the caller's own words, whatever the dialect."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.serving.a1111.test_a1111 import in_base64, picture

SMALL: dict[str, Any] = {"prompt": "a red apple", "seed": 7, "steps": 2, "width": 64, "height": 64}
TXT2IMG, IMG2IMG = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"
EXTRAS = "/sdapi/v1/extra-single-image"
PICTURE = in_base64(picture())


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=120) as client:
        yield client


def png() -> bytes:
    return base64.b64decode(PICTURE)


def refusal(answer: httpx.Response) -> tuple[str, str | None]:
    """What is said, and the field that is named."""
    assert answer.is_client_error, answer.text
    said = answer.json()
    return (said["detail"], None) if "detail" in said else (said["error"]["message"], said["error"]["param"])


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        (
            "/v1/jobs",
            {"width": 100, "stepz": 3, "strength": 0.5, "highres": {"scal": 3}, "loras": [{"name": "x", "wieght": 1}]},
            "prompt",
            ["prompt: is needed", "width: ", "stepz: no such field; did you mean 'steps'", "strength: needs an init",
             "highres.scal: no such field; did you mean 'scale'",
             "loras.0.wieght: no such field; did you mean 'weight'"],
        ),
        ("/v1/jobs", [SMALL, SMALL | {"steps": 0, "mask_invert": True}], "1.steps", ["1.mask_invert: needs a mask"]),
        (
            "/v1/jobs",
            {"kind": "training", "recipe": {"kind": "lora", "data": "x", "nam": "y", "rnak": 3}, "prioriti": 1},
            "recipe.name",
            ["recipe.name: is needed", "recipe.rnak: no such field; did you mean 'rank'", "did you mean 'priority'"],
        ),
        ("/v1/jobs", {"kind": "training", "recipe": {"kind": ["lora"]}}, "recipe", ["'lora', 'dreambooth'"]),
        (
            "/v1/upscales",
            {"init": "apple", "scale": 9, "methd": "lanczos"},
            "init",
            ["init: ", "scale: ", "methd: no such field; did you mean 'method'"],
        ),
        (
            "/v1/images/generations",
            {"n": 11, "size": "100x100", "background": "transparent", "pag_layers": ["up"], "refiner_switch": 0.5,
             "promt": "x", "loras": [{"name": "ink", "start": 1}]},
            "promt",
            ["prompt: is needed", "n: ", "size: 100x100: each side", "background: ", "pag_layers: ", "refiner_switch: ",
             "did you mean 'prompt'", "loras.0.start: 1.0 must be below end"],
        ),
        ("/v1/images/generations", {"prompt": "x", "model": "mimi"}, "model", ["did you mean 'mini'"]),
        ("/v1/images/generations", {"prompt": "x", "sampler": "Eulr"}, "sampler", ["did you mean 'Euler'"]),
        ("/v1/images/generations", {"prompt": "x", "size": "4096x4096"}, "size", ["size: the picture would have"]),
        (
            TXT2IMG,
            SMALL | {"cfg_scale": 200, "sampler_name": "Eulr", "tiling": True, "batch_size": 100, "n_iter": 100,
                     "enable_hr": True, "hr_scale": 9, "hr_prompt": "b", "denoising_strenght": 0.3, "styles": ["noir"]},
            None,
            ["cfg_scale: ", "no sampler named 'Eulr'", "tiling: ", "batch_size: ", "hr_scale: ", "hr_prompt: ",
             "denoising_strenght: no such field; did you mean 'denoising_strength'", "styles: "],
        ),
        (
            TXT2IMG,
            SMALL | {"refiner_checkpoint": "nothing", "override_settings": {
                     "sd_model_checkpoint": "mimi", "sd_vae": "x", "CLIP_stop_at_last_layers": 99,
                     "jpeg_qualiti": 3, "eta_ddim": 1}},
            None,
            ["no model named 'mimi'", "no model named 'nothing'", "override_settings.sd_vae: ",
             "override_settings.CLIP_stop_at_last_layers: ", "override_settings.eta_ddim: ",
             "override_settings.jpeg_qualiti: no such field; did you mean 'jpeg_quality'"],
        ),
        (
            TXT2IMG,
            SMALL | {"sampler_name": "Euler", "scheduler": "turbo", "alwayson_scripts": {"ControlNet": {"args": [
                {"modle": "x", "weight": 3}, {"module": "openpose", "model": "x", "control_mode": "mine"}]}}},
            None,
            ["scheduler: there is no schedule 'turbo'", "alwayson_scripts.ControlNet.args.0.weight: ",
             "alwayson_scripts.ControlNet.args.0.modle: no such field; did you mean 'model'",
             "alwayson_scripts.ControlNet.args.1.module: no module 'openpose'",
             "alwayson_scripts.ControlNet.args.1.control_mode: "],
        ),
        (
            IMG2IMG,
            SMALL | {"denoising_strength": 0, "resize_mode": 3, "mask": PICTURE, "mask_round": False, "mask_blur": 999},
            None,
            ["denoising_strength: ", "resize_mode: ", "mask_round: ", "mask_blur: ", "init_images: at least one"],
        ),
        (IMG2IMG, SMALL | {"init_images": [PICTURE, "?"], "batch_size": 2}, None, ["base64"]),
        (
            EXTRAS,
            {"upscaling_resize": 9, "gfpgan_visibility": 1, "upscaler_2": "Lanczos", "extras_upscaler_2_visibility": 1,
             "upscaler1": "Lanczos"},
            None,
            ["image: is needed", "upscaling_resize: ", "gfpgan_visibility: ", "upscaler_2: ", "mean 'upscaler_1'"],
        ),
        (
            "/controlnet/detect",
            {"controlnet_module": "openpose", "controlnet_masks": 3, "controlnet_modle": "x"},
            None,
            ["controlnet_module: no module 'openpose'", "controlnet_input_images: No image selected",
             "controlnet_masks: ", "controlnet_modle: no such field; did you mean 'controlnet_module'"],
        ),
        ("/sdapi/v1/options", {"sd_model_chekpoint": "mini", "sd_vae": 3, "s_churn": 1}, None,
         ["did you mean 'sd_model_checkpoint'", "sd_vae: ", "s_churn: "]),
    ],
)  # fmt: skip
def test_all_errors_are_reported_at_once(
    client: httpx.Client, path: str, body: Any, param: str | None, says: list[str]
) -> None:
    message, named = refusal(client.post(path, json=body))
    assert [words for words in says if words not in message] == [], message
    assert named == param


def test_forms_are_checked_as_bodies_are(client: httpx.Client) -> None:
    form = {"n": "11", "size": "big", "loras": '[{"name": "ink", "wieght": 2}]', "negativ_prompt": "x", "steps": "two"}
    message, param = refusal(client.post("/v1/images/edits", data=form, files={"image": png()}))
    for words in ("prompt: is needed", "n: ", "size: ", "loras.0.wieght: no such field", "steps: "):
        assert words in message
    assert "negativ_prompt: no such field; did you mean 'negative_prompt'" in message
    assert param == "negativ_prompt"
    _, param = refusal(client.post("/v1/images/edits", data={"prompt": "x"}, files={"image": b"no picture"}))
    assert param == "image"
    _, param = refusal(client.post("/v1/images/edits", data={"prompt": "x"}, files={"mask": png()}))
    assert param == "image"
    message, _ = refusal(client.post("/v1/images/variations", data={"image": "a.png"}, files={"other": b"x"}))
    assert message == "image: a picture is required, as a file of the multipart form"


def test_parts_of_a_form_are_json(client: httpx.Client) -> None:
    form = {
        "prompt": "x",
        "size": "64x64",
        "steps": "2",
        "freeu": '{"b1": 1.1}',
        "loras": "[]",
        "response_format": "url",
    }
    answer = client.post("/v1/images/edits", data=form, files={"image": png()}).raise_for_status().json()
    job = client.get("/v1/jobs?limit=1").json()["data"][0]
    assert job["spec"]["freeu"]["b1"] == 1.1
    assert answer["data"][0]["url"]


@pytest.mark.parametrize("content", [b"{", b"", b'{"prompt": }', b"[1"])
def test_a_body_that_is_not_json_gets_a_clear_error(client: httpx.Client, content: bytes) -> None:
    for path in ("/v1/jobs", TXT2IMG):
        message, param = refusal(client.post(path, content=content, headers={"content-type": "application/json"}))
        assert "JSON" in message or "needed" in message
        assert param is None


# What clients of AUTOMATIC1111 send in places that have no type there


@pytest.mark.parametrize("args", [5, "canny", True, 1.5])
@pytest.mark.parametrize("script", ["controlnet", "ADetailer", "Dynamic Prompts v2.17.1", "Sampler"])
def test_arguments_of_another_type_are_refused(client: httpx.Client, script: str, args: Any) -> None:
    for said in ({"args": args}, args):
        answer = client.post(TXT2IMG, json=SMALL | {"alwayson_scripts": {script: said}})
        assert answer.status_code == 422, answer.text
        assert f"alwayson_scripts.{script}" in answer.json()["detail"]


@pytest.mark.parametrize(
    "scripts",
    [
        {"Dynamic Prompts": {"args": {"on": True}}},
        {"Dynamic Prompts": {"args": ["yes"]}},
        {"Dynamic Prompts": {"args": [[True], True]}},
        {"controlnet": {"args": ["canny"]}},
        {"controlnet": {"args": [[{}], 3]}},
        {"controlnet": {"args": [{"module": 3}]}},
        {"controlnet": {"args": [{"image": [[3]]}]}},
        {"Sampler": {"args": [{}, [], 3]}},
        {"Seed": {"args": ["x", False]}},
        {"Refiner": {"args": [True, 3, "x"]}},
        {"ADetailer": {"args": {"ad_model": "face"}}},
        [],
        "controlnet",
    ],
)
def test_other_invalid_arguments_are_refused(client: httpx.Client, scripts: Any) -> None:
    assert client.post(TXT2IMG, json=SMALL | {"alwayson_scripts": scripts}).status_code == 422


@pytest.mark.parametrize("scripts", [None, {}, {"ADetailer": None}, {"x": {"args": None}}, {"y": {}}, {"z": []}])
def test_disabled_scripts_and_units_are_ignored(client: httpx.Client, scripts: Any) -> None:
    client.post(TXT2IMG, json=SMALL | {"alwayson_scripts": scripts}).raise_for_status()


PAGE = {
    "API payload": {"args": []},
    "Comments": {"args": []},
    "Refiner": {"args": [False, "", 0.8]},
    "Sampler": {"args": [2, "DPM++ 2M", "Automatic"]},
    "Seed": {"args": [5, False, -1, 0, 0, 0]},
    "Soft Inpainting": {"args": [False, 1, 0.5, 4, 0, 0.5, 2]},
}
"""The parts of AUTOMATIC1111's own page, in a payload that was copied from it."""


def test_panels_of_the_page_fill_in_fields_that_the_body_omits(client: httpx.Client) -> None:
    body = {"prompt": "a red apple", "width": 64, "height": 64, "alwayson_scripts": PAGE}
    info = json.loads(client.post(TXT2IMG, json=body).raise_for_status().json()["info"])
    assert (info["steps"], info["sampler_name"], info["seed"]) == (2, "DPM++ 2M", 5)
    message, _ = refusal(client.post(TXT2IMG, json=body | {"steps": 3, "seed": 6}))
    assert "alwayson_scripts.Sampler: steps is 2, but the body's is 3" in message
    assert "alwayson_scripts.Seed: seed is 5, but the body's is 6" in message
    soft = {"Soft Inpainting": {"args": [True, 1]}}
    assert "no script 'Soft Inpainting'" in refusal(client.post(TXT2IMG, json=body | {"alwayson_scripts": soft}))[0]


# Values that are worked out from others


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            {"resize_mode": 1, "upscaler_1": "Lanczos"},
            "upscaling_resize_w: a picture of 32x24 grows to 256x192 at most",
        ),
        (
            {"resize_mode": 1, "upscaling_resize_w": 8, "upscaling_resize_h": 16_384, "upscaler_1": "Lanczos"},
            "upscaling_resize_h: a picture of 32x24 grows to 256x192",
        ),
        ({"upscaling_resize": 0.001, "upscaler_1": "Lanczos"}, "upscaling_resize: a factor this small leaves nothing"),
    ],
)
def test_a_picture_grows_as_far_as_is_possible(client: httpx.Client, body: dict[str, Any], says: str) -> None:
    small = in_base64(picture(size=(32, 24)))
    answer = client.post(EXTRAS, json={"image": small} | body)
    assert answer.is_client_error, answer.text
    assert says in answer.json()["detail"]
    batch = client.post("/sdapi/v1/extra-batch-images", json={"imageList": [{"data": small, "name": "a"}]} | body)
    assert says in batch.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (TXT2IMG, {"enable_hr": True, "hr_resize_x": 640}, "hr_resize_x: "),
        (TXT2IMG, {"enable_hr": True, "hr_resize_y": 32}, "hr_resize_y: "),
        (TXT2IMG, {"enable_hr": True, "hr_resize_x": 10**400}, "hr_resize_x: "),
        (TXT2IMG, {"enable_hr": True, "hr_scale": 1}, "hr_scale: "),
        (TXT2IMG, {"enable_hr": True, "hr_scale": 8, "width": 1024, "height": 1024}, "hr_scale: the picture would"),
        (TXT2IMG, {"enable_hr": True, "denoising_strength": 0}, "denoising_strength: "),
        (TXT2IMG, {"refiner_checkpoint": "mini", "refiner_switch_at": -1}, "refiner_switch_at: "),
        (TXT2IMG, {"seed": 2**64 - 1, "batch_size": 2}, "seed"),
        (TXT2IMG, {"batch_size": 1000, "n_iter": 2}, "batch_size: "),
        (IMG2IMG, {"init_images": [PICTURE], "script_name": "SD upscale", "script_args": ["", 12, "Lanczos", 2]},
         "script_args: "),
        (IMG2IMG, {"init_images": [PICTURE], "script_name": "SD upscale", "script_args": ["", 16, "Lanczos", 99]},
         "script_args: "),
        (IMG2IMG, {"init_images": [PICTURE], "script_name": "SD upscale", "script_args": ["", True, None, "x"]},
         "script_args: "),
        (IMG2IMG, {"init_images": [PICTURE], "mask": PICTURE, "script_name": "SD upscale",
                   "script_args": ["", 16, "Lanczos", 2]}, "mask: SD upscale redraws the whole picture"),
        ("/v1/images/generations", {"seed": 2**64 - 1, "n": 2}, "seed"),
        ("/v1/jobs", {"extend": {"left": 2048}, "init": "0" * 64}, "no picture"),
    ],
)  # fmt: skip
def test_derived_values_are_checked_too(client: httpx.Client, path: str, body: dict[str, Any], says: str) -> None:
    message, _ = refusal(client.post(path, json=SMALL | body))
    assert says in message


def test_a_canvas_may_grow_no_larger_than_can_be_drawn(client: httpx.Client) -> None:
    kept = client.post("/v1/files", files={"file": png()}).raise_for_status().json()["id"]
    body = {"prompt": "x", "init": kept, "extend": {"left": 2048, "right": 2048, "top": 2048, "bottom": 2048}}
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 400, answer.text
