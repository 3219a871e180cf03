"""No input is answered with a 500, and every answer comes within seconds.

Two ways: schemathesis, which reads /openapi.json, and bodies of real clients in which one value after the other is
replaced by what it is not. Where nothing is drawn, because every picture is refused as too large, all of the doors are
tried with everything; where pictures are drawn, what is left of a harmless change has to be told in the answer, too.
"""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from tests.serving.conftest import serving, settings_in
from tests.serving.test_recorded_clients import SILLYTAVERN

PATIENCE_S = 30
DRAWN_WITHIN_S = 120
"""Fifty steps, with five other pictures beside it on a machine that is busy."""
AT_ONCE = 6
HERE = "@here@"
"""Stands in a body where another value is put."""


def picture(mode: str = "RGB") -> str:
    file = BytesIO()
    Image.new(mode, (64, 64), "white").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


PICTURE = picture()
UNIT = {"enabled": True, "module": "canny", "model": "x", "weight": 1, "image": PICTURE, "resize_mode": 1,
        "control_mode": 0, "guidance_start": 0, "guidance_end": 1, "threshold_a": 100, "threshold_b": 200,
        "processor_res": 64, "pixel_perfect": True}  # fmt: skip
DRAWING = SILLYTAVERN | {
    "seed": 7, "batch_size": 1, "n_iter": 1, "styles": [], "eta": 1, "subseed": -1, "tiling": False, "comments": {},
    "script_name": None, "script_args": [], "refiner_checkpoint": "", "alwayson_scripts": {"ADetailer": {"args": []}},
}  # fmt: skip
DRAFT = {
    "prompt": "a red apple", "negative_prompt": "blue", "model": "mini", "seed": 7, "width": 64, "height": 64,
    "steps": 2, "sampler": "Euler a", "guidance": 5, "guidance_rescale": 0.1,
    "guidance_interval": {"start": 0, "end": 1},
    "clip_skip": 1, "determinism": "fast", "freeu": {"b1": 1.5, "b2": 1.6, "s1": 0.9, "s2": 0.2}, "pag_layers": ["mid"],
    "sag_scale": 0, "output_format": "png", "output_compression": 90, "metadata": "full", "priority": 0,
    "expires_in_s": 60, "webhook_url": "http://webhooks.invalid/x", "expand": "wildcards",
}  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    "/sdapi/v1/txt2img": DRAWING,
    "/sdapi/v1/txt2img?led": DRAWING | {"alwayson_scripts": {"controlnet": {"args": [UNIT]}}},
    "/sdapi/v1/txt2img?larger": DRAWING | {"enable_hr": True, "hr_scale": 2, "hr_resize_x": 0, "hr_resize_y": 0},
    "/sdapi/v1/img2img": DRAWING | {
        "init_images": [PICTURE], "mask": picture("L"), "mask_blur": 4, "inpainting_fill": 1, "resize_mode": 0,
        "inpaint_full_res": True, "inpaint_full_res_padding": 32, "inpainting_mask_invert": 0,
        "denoising_strength": 0.7, "include_init_images": True, "image_cfg_scale": 1.5,
    },
    "/sdapi/v1/img2img?over": DRAWING | {
        "init_images": [PICTURE], "script_name": "SD upscale", "script_args": ["", 16, "Lanczos", 2],
    },
    "/sdapi/v1/extra-single-image": {
        "image": PICTURE, "resize_mode": 0, "upscaling_resize": 2, "upscaling_resize_w": 128, "upscaling_resize_h": 128,
        "upscaling_crop": True, "upscaler_1": "Lanczos", "upscaler_2": "None", "extras_upscaler_2_visibility": 0,
        "gfpgan_visibility": 0,
    },
    "/sdapi/v1/extra-batch-images": {
        "imageList": [{"data": PICTURE, "name": "x"}], "resize_mode": 1, "upscaling_resize_w": 80,
        "upscaling_resize_h": 80, "upscaler_1": "Lanczos",
    },
    "/sdapi/v1/png-info": {"image": PICTURE},
    "/sdapi/v1/interrogate": {"image": PICTURE, "model": "clip"},
    "/sdapi/v1/options": {
        "sd_model_checkpoint": "mini", "sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1, "samples_format": "png",
        "jpeg_quality": 80, "s_noise": 1.0, "emphasis": "Original", "unknown": 1,
    },
    "/controlnet/detect": {
        "controlnet_module": "canny", "controlnet_input_images": [PICTURE], "controlnet_processor_res": 64,
        "controlnet_threshold_a": 100, "controlnet_threshold_b": 200,
    },
    "/v1/images/generations": {
        "model": "gpt-image-1", "prompt": "a red apple", "n": 1, "size": "64x64", "quality": "auto", "style": "vivid",
        "background": "auto", "output_format": "png", "output_compression": 90, "moderation": "auto", "seed": 7,
        "response_format": "b64_json", "user": "ann", "steps": 2, "negative_prompt": "", "sampler": "Euler",
        "loras": [], "stream": False, "partial_images": 0,
    },
    "/v1/jobs": DRAFT,
    "/v1/jobs?edit": {
        "prompt": "a pear", "init": "0" * 64, "mask": "1" * 64, "strength": 0.5, "fit": "crop", "mask_blur": 4,
        "only_masked": True, "padding": 8, "soft_mask": False, "steps": 2,
        "loras": [{"name": "x", "weight": 0.5, "blocks": {"mid": 1}, "start": 0, "end": 1}],
        "controls": [{"model": "x", "image": "0" * 64, "preprocessor": "canny", "thresholds": [100, 200], "weight": 1}],
        "picture_prompts": [{"model": "x", "image": "0" * 64, "weight": 1}],
    },
    "/v1/jobs?grown": {
        "prompt": "a pear", "init": "0" * 64, "extend": {"left": 64, "top": 0, "right": 0, "bottom": 0}, "steps": 2,
        "tiles": {"side": 64, "overlap": 8}, "highres": {"scale": 2, "strength": 0.5, "steps": 1, "upscaler": "latent"},
    },
    "/v1/jobs?training": {
        "kind": "training", "priority": 0,
        "recipe": {"kind": "lora", "name": "x", "data": "/nowhere", "steps": 1, "rank": 4, "learning_rate": 0.1},
    },
    "/v1/upscales": {
        "init": "0" * 64, "scale": 2, "method": "lanczos", "output_format": "png", "output_compression": 90,
        "metadata": "full",
    },
}  # fmt: skip
HARMLESS = (
    "null",
    "true",
    "0",
    "-1",
    "0.5",
    '""',
    '" "',
    '"x"',
    '"\\ud83d\\udc31"',
    "[]",
    "[null]",
    "{}",
    '{"": null}',
)
HOSTILE = (
    *HARMLESS, "false", "1", "2147483648", "9223372036854775808", "-18446744073709551616", f"1{'0' * 400}",
    f"1{'0' * 5000}", "1e308", "-1e308", "5e-324", "1e999", "NaN", "-Infinity", '"0"', '"-1"', '"nan"', '"inf"',
    '"1e999"', '"\\u0000"', '"\\ud800"', '"\\u202e"', '"\\ufffe"', f'"{"a" * 300}"', f'"{"a" * 100_000}"',
    f'"{"(" * 10_000}"', f'"{"[a|" * 6000}"', f'"{"{a|" * 6000}"', '"../../../etc/passwd"', '"/dev/zero"', '"__x__"',
    '"<lora:x:nan>"', '"http://xn--/"', '"http://[::1"', '"data:,"', '"data:image/png;base64,AAAA"',
    '"9999999999x9999999999"', '"64x"', "[[]]", "[1, 2, 3]", '["x", "x", "x"]', '{"x": {"y": []}}',
    f"[{','.join(['0'] * 10_000)}]", f"{'[' * 90}{']' * 90}", f"{'[' * 5000}{']' * 5000}",
    '{"a":' * 90 + "1" + "}" * 90, '{"a":' * 5000 + "1" + "}" * 5000,
)  # fmt: skip
"""JSON as it is sent; some of it is none."""
NAMES = ('""', '"x"', '"__class__"', '"\\u0000"', '"\\ud800"', f'"{"n" * 10_000}"', '"prompt "', '"Prompt"')


def changed(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The value with one thing in it, or itself, marked, and where that is."""
    yield where, HERE
    match value:
        case dict():
            for name, inner in value.items():
                for place, other in changed(inner, f"{where}.{name}"):
                    yield place, value | {name: other}
        case list():
            for number, inner in enumerate(value):
                for place, other in changed(inner, f"{where}[{number}]"):
                    yield place, [*value[:number], other, *value[number + 1 :]]
        case _:
            pass


def mutations(body: dict[str, Any], values: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """What is changed, and the body as it is sent."""
    for where, marked in changed(body):
        text = json.dumps(marked)
        for value in values:
            yield f"{where} = {value}", text.replace(json.dumps(HERE), value)
    text = json.dumps(body)
    for name in NAMES:
        yield f"{name} added", text[:-1] + f", {name}: 1}}"
    for other in (text[:-1], text + "}", f"[{text}]", "", " ", "\0", "\ufeff" + text, text.replace('"', "'")):
        yield "no such JSON", other


def faults(client: httpx.Client, path: str, bodies: Iterator[tuple[str, str]]) -> list[str]:
    """What was answered with a 500, or not in time."""

    def ask(changed: tuple[str, str]) -> str:
        what, body = changed
        try:
            answer = client.post(path, content=body.encode("utf-8", "surrogatepass"), headers=JSON)
        except httpx.TransportError as error:
            return f"{type(error).__name__}: {what[:200]}"
        return f"{answer.status_code}: {what[:200]}" if answer.status_code >= 500 else ""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [fault for fault in pool.map(ask, bodies) if fault]


JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def drawing_nothing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = settings_in(tmp_path_factory.mktemp("fuzz")).model_copy(
        update={"max_output_pixels": 4000, "allow_training": False}
    )
    if request.param == "postgresql":
        settings = settings.model_copy(update={"database_url": request.getfixturevalue("postgresql")})
    with serving(settings) as url, httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = settings_in(tmp_path_factory.mktemp("fuzz")).model_copy(update={"max_output_pixels": 40_000})
    with serving(settings) as url, httpx.Client(base_url=url, timeout=DRAWN_WITHIN_S) as client:
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("path", BODIES)
def test_no_value_in_a_body_is_answered_with_a_500(drawing_nothing: httpx.Client, path: str) -> None:
    assert faults(drawing_nothing, path, mutations(BODIES[path], HOSTILE)) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in BODIES if "grown" not in path and "edit" not in path])
def test_no_valid_remainder_of_a_body_is_answered_with_a_500(drawing: httpx.Client, path: str) -> None:
    assert faults(drawing, path, mutations(BODIES[path], HARMLESS)) == []


FORM = {"model": "mini", "prompt": "an orange", "n": "1", "size": "64x64", "response_format": "b64_json", "steps": "1",
        "seed": "7", "strength": "0.5", "input_fidelity": "high", "quality": "auto"}  # fmt: skip
WORDS = ("", " ", "x", "-1", "0", "0.5", "nan", "inf", "1e999", "9" * 30, "9" * 5000, "\0", "🐱", "a" * 100_000, "[]",
         "{}", "null", "true", "../x", "(" * 10_000)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/variations"])
def test_no_form_is_answered_with_a_500(drawing: httpx.Client, path: str) -> None:
    image = ("x.png", base64.b64decode(PICTURE), "image/png")
    files: list[dict[str, Any]] = [
        {"image": image}, {"image": image, "mask": image}, {"image[]": image}, {"image": ("", b"", "")},
        {"image": ("x", b"no picture", "image/png")}, {"mask": image}, {"prompt": image, "image": image},
        {"image": image, "mask": ("\0", b"\x89PNG\r\n\x1a\n", "x/y")},
    ]  # fmt: skip
    asked: list[tuple[dict[str, str], dict[str, Any]]] = [(FORM, one) for one in files]
    asked += [(FORM | {name: word}, files[0]) for name in FORM for word in WORDS]
    asked += [(FORM | {word[:2000]: "x"}, files[0]) for word in WORDS]

    def ask(form: tuple[dict[str, str], dict[str, Any]]) -> str:
        said, sent = form
        answer = client.post(path, data=said, files=sent)
        return f"{answer.status_code} {said} {[*sent]}"[:300] if answer.status_code >= 500 else ""

    client = drawing
    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert [fault for fault in pool.map(ask, asked) if fault] == []


@pytest.mark.slow
def test_no_query_path_or_header_is_answered_with_a_500(drawing_nothing: httpx.Client) -> None:
    words = [
        "",
        "x",
        "-1",
        "0",
        "1.5",
        "nan",
        "inf",
        "9" * 30,
        "%00",
        "%ff",
        "%F0%9F%90%B1",
        "a" * 4000,
        "..%2f..%2fetc",
    ]
    paths = [f"/v1/jobs?{name}={word}" for name in ("state", "before", "limit", "x") for word in words]
    paths += [
        f"/v1/{kind}/{word}{rest}"
        for kind in ("jobs", "files", "models")
        for word in (*words, "0" * 32, "0" * 64)
        for rest in ("", "/wait?timeout_s=0", "/events", "/wait?timeout_s=nan", ".png", "?expires=1&signature=%C3%A9")
    ]
    paths += [f"/v1/files/{'0' * 64}?expires={word}&signature={word}" for word in words]
    paths += [f"/sdapi/v1/progress?skip_current_image={word}" for word in words]
    headers = [
        {name: word.encode()}
        for name in ("Authorization", "Idempotency-Key", "Last-Event-ID", "X-Request-ID", "Content-Type", "X-API-Key")
        for word in (
            "",
            "é",
            "Basic",
            "Basic é",
            "Basic ====",
            "Bearer é",
            "9" * 30,
            "a" * 4000,
            "application/json; x=\x7f",
        )
    ]

    def ask(fields: tuple[str, str, dict[str, bytes]]) -> str:
        method, path, said = fields
        answer = drawing_nothing.request(method, path, headers=said, content=b"{}" if method == "POST" else None)
        return f"{answer.status_code} {method} {path[:200]} {said}" if answer.status_code >= 500 else ""

    asked = [("GET", path, {}) for path in paths] + [("DELETE", path, {}) for path in paths[:20]]
    asked += [(method, path, said) for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs")) for said in headers]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert [fault for fault in pool.map(ask, asked) if fault] == []


@pytest.mark.slow
def test_no_case_of_schemathesis_is_answered_with_a_500(drawing_nothing: httpx.Client, tmp_path: Path) -> None:
    schemathesis = Path(sys.executable).with_name("schemathesis")
    command = [str(schemathesis), "run", f"{drawing_nothing.base_url}/openapi.json", "--checks", "not_a_server_error"]
    command += ["--max-examples", "100", "--phases", "examples,coverage,fuzzing", "--mode", "all", "--seed", "1"]
    command += ["--exclude-path-regex", "/(events|wait)$", "--request-timeout", str(PATIENCE_S), "--no-color"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-8000:] + found.stderr[-2000:]
