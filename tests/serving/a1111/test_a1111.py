"""/sdapi/v1 as the `webuiapi` package speaks it, and what it does beyond what that package asks for."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import webuiapi
from PIL import Image, ImageDraw
from tests.models.embeddings import write_a1111, write_sdxl
from tests.patience import PATIENCE_S, wait_until
from tests.serving.conftest import ask_and_go, ended, serving, settings_in

from safelight.models.checkpoints.catalogue import MINI
from safelight.models.checkpoints.families import describe, text_widths
from safelight.models.vision.upscalers import bundled_folder

SMALL: dict[str, Any] = {"prompt": "a red apple", "seed": 7, "steps": 2, "width": 64, "height": 64}
LONG = SMALL | {"steps": 1000}


def api_at(url: str, key: str = "") -> webuiapi.WebUIApi:
    where = urlsplit(url)
    # With Basic, the user's name is anybody's and the password is the key.
    return webuiapi.WebUIApi(host=where.hostname, port=where.port, username="anybody", password=key)


@pytest.fixture
def api(server: str) -> webuiapi.WebUIApi:
    return api_at(server)


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server}/sdapi/v1") as client:
        yield client


def picture(colour: str = "blue", size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, colour)


def in_base64(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def left_half(size: tuple[int, int] = (64, 64)) -> Image.Image:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle((0, 0, size[0] // 2 - 1, size[1]), fill=255)
    return mask


def refused(client: httpx.Client, route: str, body: dict[str, Any]) -> tuple[int, str]:
    answer = client.post(route, json=body)
    said = answer.json()
    assert set(said) == {"error", "detail", "body", "errors"}, said
    return answer.status_code, said["detail"]


# Pictures


def test_words_become_pictures_with_consecutive_seeds(api: webuiapi.WebUIApi) -> None:
    result = api.txt2img(**SMALL, negative_prompt="green", cfg_scale=4.0, batch_size=2, n_iter=2)
    assert [image.size for image in result.images] == [(64, 64)] * 4
    info = result.info
    assert info["all_seeds"] == [7, 8, 9, 10]
    assert (info["seed"], info["sampler_name"], info["steps"], info["cfg_scale"]) == (7, "Euler a", 2, 4.0)
    assert info["sd_model_name"] == "mini"
    assert len(info["infotexts"]) == 4
    assert info["infotexts"][0].startswith("a red apple\nNegative prompt: green\nSteps: 2, Sampler: Euler a,")
    # The file says the same, and a seed alone brings the same picture back.
    assert result.images[1].info["parameters"] == info["infotexts"][1]
    again = api.txt2img(**SMALL | {"seed": 8}, negative_prompt="green", cfg_scale=4.0)
    assert again.info["infotexts"] == info["infotexts"][1:2]
    assert result.parameters["prompt"] == "a red apple"


def test_info_has_every_field_that_clients_read(api: webuiapi.WebUIApi) -> None:
    info = api.txt2img(**SMALL).info
    assert set(info) >= set(
        """prompt all_prompts negative_prompt all_negative_prompts seed all_seeds subseed all_subseeds subseed_strength
        width height sampler_name cfg_scale steps batch_size restore_faces face_restoration_model sd_model_name
        sd_model_hash sd_vae_name sd_vae_hash seed_resize_from_w seed_resize_from_h denoising_strength
        extra_generation_params index_of_first_image infotexts styles job_timestamp clip_skip
        is_using_inpainting_conditioning""".split()
    )


def test_minus_one_is_a_new_seed_each_time(client: httpx.Client) -> None:
    answers = [client.post("/txt2img", json=SMALL | {"seed": -1, "steps": 1}).json() for _ in range(2)]
    seeds = [json.loads(answer["info"])["seed"] for answer in answers]
    assert seeds[0] != seeds[1]
    assert -1 not in seeds


def test_a_second_pass_makes_it_larger(api: webuiapi.WebUIApi) -> None:
    result = api.txt2img(**SMALL, enable_hr=True, hr_scale=2, hr_upscaler="Latent", hr_second_pass_steps=2)
    assert result.image.size == (128, 128)
    assert result.info["extra_generation_params"]["Hires upscale"] == "2"
    assert result.info["denoising_strength"] == 0.7
    resized = api.txt2img(**SMALL, enable_hr=True, hr_resize_x=96, hr_upscaler="Lanczos")
    assert resized.image.size == (96, 96)


def test_a_refiner_takes_over(client: httpx.Client) -> None:
    def said(**refining: Any) -> dict[str, str]:
        answer = client.post("/txt2img", json=SMALL | refining).raise_for_status().json()
        return json.loads(answer["info"])["extra_generation_params"]

    [listed] = [one for one in client.get("/sd-models").json() if one["model_name"] == "mini"]
    for name in ("mini", "mini [0123456789]", listed["title"], listed["sha256"], listed["sha256"][:10]):
        drawn = said(refiner_checkpoint=name, refiner_switch_at=0.5)
        assert drawn["Refiner"].startswith("mini [")
        assert drawn["Refiner switch at"] == "0.5"
    assert "Refiner" not in said(refiner_checkpoint="mini", refiner_switch_at=1)
    twice = {"enable_hr": True, "hr_upscaler": "Latent", "hr_second_pass_steps": 4}
    drawn = said(refiner_checkpoint="mini", refiner_switch_at=0.5, **twice)
    assert (drawn["Refiner switch at"], drawn["Hires upscale"]) == ("0.5", "2")


def test_a_size_that_the_model_cannot_keep_together_is_drawn_by_a_second_pass(server: str) -> None:
    body = {"prompt": "a red apple", "steps": 1, "seed": 7}  # 512x512, as is the default there
    answer = httpx.post(f"{server}/sdapi/v1/txt2img", json=body, timeout=120).raise_for_status().json()
    drawn = Image.open(BytesIO(base64.b64decode(answer["images"][0])))
    assert drawn.size == (512, 512)
    assert "Size: 128x128" in drawn.info["parameters"]
    assert "Hires upscale: 4" in drawn.info["parameters"]
    as_asked = httpx.post(f"{server}/sdapi/v1/txt2img", json=body | {"width": 256, "height": 256}, timeout=120).json()
    assert "Size: 256x256" in json.loads(as_asked["info"])["infotexts"][0]


def test_pictures_become_pictures(api: webuiapi.WebUIApi) -> None:
    result = api.img2img(images=[picture(size=(96, 64))], denoising_strength=0.5, resize_mode=1, **SMALL)
    assert result.image.size == (64, 64)
    assert result.info["denoising_strength"] == 0.5
    assert result.parameters["init_images"] is None
    # One for each picture of a batch.
    both = api.img2img(images=[picture("red"), picture("lime")], batch_size=2, denoising_strength=0.5, **SMALL)
    first, second = (image.resize((1, 1)).getpixel((0, 0)) for image in both.images)
    assert first[0] > second[0]


@pytest.mark.parametrize(
    ("args", "side"),
    [
        (["", 16, "lanczos", 2], 192),
        (["", 16, 1, 1.5], 144),
        (["", 16, "Lanczos", 1], 96),
        (["", 16, "None", 2], 96),
        (["", 16, 0, 2], 96),
    ],
)
def test_the_script_sd_upscale_draws_a_picture_over_in_tiles(
    api: webuiapi.WebUIApi, args: list[Any], side: int
) -> None:
    result = api.img2img(
        images=[picture(size=(96, 96))],
        denoising_strength=0.5,
        script_name="SD upscale",
        script_args=args,
        **SMALL,
    )
    assert result.image.size == (side, side)


@pytest.mark.parametrize(
    "args", [[], [64], ["", "wide", "Lanczos", 2], ["", 16, -1, 2], ["", 16, 99, 2], ["", 10**400, 1, "x"]]
)
def test_other_arguments_of_sd_upscale_are_answered_with_its_own(client: httpx.Client, args: list[Any]) -> None:
    body = SMALL | {"init_images": [in_base64(picture())], "script_name": "SD upscale", "script_args": args}
    status, detail = refused(client, "/img2img", body)
    assert status == 422
    assert "an overlap, an upscaler and a factor" in detail


def test_an_endless_overlap_is_refused(client: httpx.Client) -> None:
    said = json.dumps(SMALL | {"init_images": [in_base64(picture())], "script_name": "SD upscale"})
    body = said[:-1] + ', "script_args": ["", 1e400, "Lanczos", 2]}'
    answer = client.post("/img2img", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


@pytest.mark.parametrize("fill", [0, 1])
def test_only_what_the_mask_covers_is_drawn_anew(api: webuiapi.WebUIApi, fill: int) -> None:
    result = api.img2img(
        images=[picture()],
        mask_image=left_half(),
        mask_blur=0,
        inpainting_fill=fill,
        inpaint_full_res=False,
        denoising_strength=1.0,
        **SMALL,
    )
    right = result.image.convert("RGB").crop((32, 0, 64, 64))
    assert right.getcolors() == [(32 * 64, (0, 0, 255))]
    inverted = api.img2img(
        images=[picture(size=(128, 96))],
        mask_image=left_half((128, 96)),
        mask_blur=0,
        inpainting_mask_invert=1,
        inpaint_full_res=True,
        inpaint_full_res_padding=8,
        **SMALL,
    )
    # Drawn at 64x64 and pasted into the whole.
    assert inverted.image.size == (128, 96)
    assert inverted.image.convert("RGB").crop((0, 0, 64, 96)).getcolors() == [(64 * 96, (0, 0, 255))]


def test_a_transparent_mask_covers_where_it_is_opaque(client: httpx.Client) -> None:
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    mask.paste((0, 0, 0, 255), (0, 0, 32, 64))
    body = SMALL | {"init_images": [in_base64(picture())], "mask": in_base64(mask), "mask_blur": 0}
    answer = client.post("/img2img", json=body | {"inpaint_full_res": False}).json()
    drawn = Image.open(BytesIO(base64.b64decode(answer["images"][0]))).convert("RGB")
    assert drawn.crop((32, 0, 64, 64)).getcolors() == [(32 * 64, (0, 0, 255))]
    assert drawn.crop((0, 0, 32, 64)).getcolors() != [(32 * 64, (0, 0, 255))]


@pytest.mark.parametrize(
    ("body", "sampler", "schedule"),
    [
        ({}, "Euler", "Automatic"),
        ({"sampler_index": "LMS"}, "LMS", "Automatic"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "karras"}, "DPM++ 2M", "Karras"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "Automatic"}, "DPM++ 2M", "Karras"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "Normal"}, "DPM++ 2M", "Uniform"),
        ({"sampler_name": "DPM++ 2M Karras"}, "DPM++ 2M", "Karras"),
        ({"sampler_name": "k_euler_a", "scheduler": None, "eta": None}, "Euler a", "Automatic"),
        ({"sampler_name": "Euler a", "eta": 0, "s_noise": 0}, "Euler", "Automatic"),
        # There, DDIM reads no schedule type.
        ({"sampler_name": "DDIM", "scheduler": "karras", "eta": 0}, "DDIM", "Automatic"),
    ],
)
def test_samplers_by_every_name_that_clients_have_for_them(
    client: httpx.Client, body: dict[str, Any], sampler: str, schedule: str
) -> None:
    info = json.loads(client.post("/txt2img", json=SMALL | body).raise_for_status().json()["info"])
    assert info["sampler_name"] == sampler
    assert info["extra_generation_params"]["Schedule type"] == schedule


def test_pictures_are_left_out_or_in_another_format_where_that_is_asked(client: httpx.Client) -> None:
    answer = client.post("/txt2img", json=SMALL | {"send_images": False, "save_images": True}).json()
    assert answer["images"] == []
    assert len(json.loads(answer["info"])["infotexts"]) == 1
    override = {"samples_format": "jpg", "CLIP_stop_at_last_layers": 2, "samples_save": False}
    answer = client.post("/txt2img", json=SMALL | {"override_settings": override}).json()
    assert Image.open(BytesIO(base64.b64decode(answer["images"][0]))).format == "JPEG"
    assert json.loads(answer["info"])["clip_skip"] == 2
    assert client.get("/options").json()["CLIP_stop_at_last_layers"] == 1


def test_sides_are_cut_to_what_can_be_drawn(client: httpx.Client) -> None:
    answer = client.post("/txt2img", json=SMALL | {"width": 70, "height": 79}).json()
    assert [json.loads(answer["info"])[side] for side in ("width", "height")] == [64, 72]


# What is refused


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"sampler_name": "Eular a"}, 404, "Euler a"),
        ({"sampler_name": "Euler", "scheduler": "turbo"}, 400, "Karras"),
        ({"override_settings": {"sd_model_checkpoint": "mimi"}}, 404, "mini"),
        ({"override_settings": {"sd_vae": "other.safetensors"}}, 404, "vae: no vae named 'other.safetensors'"),
        ({"override_settings": {"eta_noise_seed_delta": 31337}}, 400, "eta_noise_seed_delta"),
        ({"script_name": "x/y/z plot"}, 422, "x/y/z plot"),
        ({"script_name": "SD upscale", "script_args": ["", 16, "Lanczos", 2]}, 422, "for img2img"),
        ({"alwayson_scripts": {"ControlNet": {"args": [{"enabled": True}]}}}, 422, "ControlNet"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, True, {"ad_model": "face"}]}}}, 422, "ADetailer"),
        ({"restore_faces": True}, 400, "restore_faces"),
        ({"tiling": True}, 400, "tiling"),
        ({"subseed_strength": 0.5}, 400, "subseed_strength"),
        ({"s_churn": 1}, 400, "s_churn"),
        ({"sampler_name": "Euler a", "eta": 0.5}, 400, "eta"),
        ({"styles": ["noir"]}, 400, "noir"),
        ({"prompt": "<lora:thing:0.8> a cat"}, 404, "no LoRA named 'thing'"),
        ({"prompt": "<hypernet:thing:0.8> a cat"}, 400, "<hypernet:thing:0.8>"),
        ({"negative_prompt": "<lora:thing:0.8>"}, 400, "belongs in the prompt"),
        ({"refiner_checkpoint": "refiner"}, 404, "refiner"),
        ({"refiner_checkpoint": "0123456789"}, 404, "0123456789"),
        ({"enable_hr": True, "hr_upscaler": "SwinIR 4x"}, 400, "hr_upscaler"),
        ({"enable_hr": True, "hr_prompt": "another"}, 400, "hr_prompt"),
        ({"steps": 0}, 422, "steps"),
        ({"width": 8}, 422, "width"),
        ({"batch_size": 100, "n_iter": 100}, 422, "batch_size"),
    ],
)
def test_unsupported_values_are_refused_by_name(
    client: httpx.Client, body: dict[str, Any], status: int, says: str
) -> None:
    answered, detail = refused(client, "/txt2img", SMALL | body)
    assert answered == status, detail
    assert says in detail


def test_neutral_values_are_accepted(client: httpx.Client) -> None:
    """As bodies copied from AUTOMATIC1111's own page and extensions that are off have it."""
    idle = {
        "styles": [""],
        "subseed": -1,
        "seed_resize_from_h": -1,
        "eta": 0,
        "denoising_strength": 0,
        "s_tmax": None,
        "s_noise": 0,
        "restore_faces": False,
        "firstphase_width": 0,
        "hr_upscaler": "string",
        "refiner_checkpoint": "",
        "refiner_switch_at": 0,
        "override_settings": {"sd_model_checkpoint": None},
        "comments": {},
        "script_name": "",
        "script_args": [],
        "alwayson_scripts": {"ADetailer": {"args": [False]}, "ControlNet": {"args": [{"enabled": False}]}, "x": {}},
        "infotext": "",
        "distilled_cfg_scale": 3.5,
    }
    client.post("/txt2img", json=SMALL | idle).raise_for_status()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "init_images"),
        ({"init_images": ["bm90IGEgcGljdHVyZQ=="]}, "not a picture"),
        ({"init_images": ["?"]}, "base64"),
        ({"init_images": ["http://127.0.0.1:1/apple.png"]}, "private network"),
        ({"init_images": ["http://169.254.169.254/latest/meta-data"]}, "private network"),
        ({"resize_mode": 3}, "resize_mode"),
        ({"script_name": "SD upscale", "script_args": ["", 16, "SwinIR 4x", 2]}, "no upscaler 'SwinIR 4x'"),
        ({"mask": "", "inpainting_fill": 2, "initial_noise_multiplier": 0.5}, "initial_noise_multiplier"),
    ],
)
def test_unavailable_pictures_are_refused(client: httpx.Client, body: dict[str, Any], says: str) -> None:
    pictures = {} if not body else {"init_images": [in_base64(picture())]}
    status, detail = refused(client, "/img2img", SMALL | pictures | body)
    assert status == (400 if body else 422)
    assert says in detail


# Lists and options


def test_the_lists_are_as_clients_read_them(api: webuiapi.WebUIApi) -> None:
    names = api.util_get_sampler_names()
    assert {"Euler", "Euler a", "DPM++ 2M", "DDIM"} <= set(names)
    assert all(isinstance(sampler["aliases"], list) for sampler in api.get_samplers())
    assert {"Automatic", "Karras"} <= {scheduler["label"] for scheduler in api.get_schedulers()}
    [model] = [model for model in api.get_sd_models() if model["model_name"] == "mini"]
    assert model["title"] == f"mini [{model['sha256'][:10]}]"
    assert api.util_get_model_names() == [model["title"]]
    assert [upscaler["name"] for upscaler in api.get_upscalers()][:2] == ["None", "Lanczos"]
    assert api.get_latent_upscale_modes()[0] == {"name": "Latent"}
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_scripts() == {"txt2img": ["controlnet"], "img2img": ["controlnet", "sd upscale"]}
    for empty in (
        api.get_sd_vae,
        api.get_loras,
        api.get_hypernetworks,
        api.get_face_restorers,
        api.get_realesrgan_models,
        api.get_prompt_styles,
    ):
        assert empty() == []
    assert api.get_cmd_flags()["api"] is True
    assert set(api.get_memory()) == {"ram", "cuda"}
    assert api.refresh_checkpoints() is None


@pytest.mark.parametrize("route", ["script-info", "extensions"])
def test_further_lists_are_empty(client: httpx.Client, route: str) -> None:
    assert client.get(f"/{route}").json() == []


def test_embeddings_are_listed_by_what_the_model_reads(tmp_path: Path) -> None:
    width = text_widths(describe(MINI))[0]
    write_a1111(tmp_path / "embeddings" / "own.safetensors", width=width, num=3)
    write_a1111(tmp_path / "embeddings" / "foreign.safetensors", width=width + 1)
    write_sdxl(tmp_path / "embeddings" / "pair.safetensors")
    (tmp_path / "embeddings" / "broken.safetensors").write_bytes(b"nothing")
    unsaid = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
    with serving(settings_in(tmp_path)) as url:
        assert api_at(url).get_embeddings() == {
            "loaded": {"own": unsaid | {"shape": width, "vectors": 3}},
            "skipped": {
                "foreign": unsaid | {"shape": width + 1, "vectors": 2},
                "pair": unsaid | {"shape": 32 + 24, "vectors": 3},
            },
        }
        info = api_at(url).txt2img(**SMALL | {"prompt": "an own apple"}).info
        assert 'TI hashes: "own: ' in info["infotexts"][0]


@pytest.mark.parametrize(
    "route", ["refresh-vae", "refresh-loras", "refresh-embeddings", "unload-checkpoint", "reload-checkpoint"]
)
def test_there_is_nothing_to_refresh(client: httpx.Client, route: str) -> None:
    assert client.post(f"/{route}").json() is None


def test_options_can_be_read_and_sent_back(api: webuiapi.WebUIApi) -> None:
    options = api.get_options()
    assert options["sd_model_checkpoint"].startswith("mini [")
    assert api.set_options(options) is None
    assert api.get_options() == options
    api.util_set_model("mini")
    assert api.util_get_current_model() == options["sd_model_checkpoint"]
    api.set_options({"sd_model_checkpoint": options["sd_model_checkpoint"][6:-1]})
    assert api.util_get_current_model() == options["sd_model_checkpoint"]


def test_options_are_refused_by_name(client: httpx.Client) -> None:
    for options, status in (
        ({"sd_model_checkpoint": "mimi"}, 404),
        ({"CLIP_stop_at_last_layers": 13}, 400),
        ({"img2img_color_correction": True}, 400),
    ):
        answered, detail = refused(client, "/options", options)
        assert answered == status
        assert next(iter(options)) in detail or "mimi" in detail


def test_options_are_of_a_key(keyed_server: tuple[str, dict[str, str]]) -> None:
    url, keys = keyed_server
    joe, ann = (api_at(url, key) for key in list(keys.values())[:2])
    joe.set_options({"CLIP_stop_at_last_layers": 2, "samples_format": "webp"})
    assert joe.get_options()["CLIP_stop_at_last_layers"] == 2
    assert ann.get_options()["CLIP_stop_at_last_layers"] == 1
    result = joe.txt2img(**SMALL)
    assert (result.image.format, result.info["clip_skip"]) == ("WEBP", 2)
    assert ann.txt2img(**SMALL).image.format == "PNG"
    # An override that is not to be restored stays.
    ann.txt2img(**SMALL, override_settings={"jpeg_quality": 50}, override_settings_restore_afterwards=False)
    assert [api.get_options()["jpeg_quality"] for api in (joe, ann)] == [80, 50]


def test_a_key_is_asked_for_as_browsers_and_clients_expect(keyed_server: tuple[str, dict[str, str]]) -> None:
    url, _ = keyed_server
    answer = httpx.get(f"{url}/sdapi/v1/options")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")


# Progress, interrupt, skip


class GenerationBody(threading.Thread):
    """A request of another thread; `result` is there once it has ended."""

    def __init__(self, api: webuiapi.WebUIApi, **fields: Any) -> None:
        super().__init__(daemon=True)
        self.api, self.fields = api, fields
        self.result: Any = None

    def run(self) -> None:
        try:
            self.result = self.api.txt2img(**self.fields)
        except RuntimeError as error:
            self.result = error

    def wait_for_a_step(self, watcher: webuiapi.WebUIApi) -> dict[str, Any]:
        self.start()
        seen: list[dict[str, Any]] = []

        def stepped() -> bool:
            seen.append(watcher.get_progress())
            return seen[-1]["state"]["sampling_step"] > 0 and bool(seen[-1]["current_image"])

        wait_until(stepped)
        return seen[-1]


def idle(api: webuiapi.WebUIApi) -> bool:
    progress = api.get_progress()
    return progress["progress"] == 0 and progress["state"]["job_count"] == 0


def test_progress_and_interrupt_are_the_callers_own(keyed_server: tuple[str, dict[str, str]]) -> None:
    url, keys = keyed_server
    joe, ann = (api_at(url, key) for key in list(keys.values())[:2])
    assert idle(joe)
    drawing = GenerationBody(joe, **LONG)
    progress = drawing.wait_for_a_step(joe)
    assert 0 < progress["progress"] < 1
    assert progress["eta_relative"] > 0
    assert (progress["state"]["job_count"], progress["state"]["sampling_steps"]) == (1, 1000)
    Image.open(BytesIO(base64.b64decode(progress["current_image"]))).verify()
    without = joe.session.get(f"{url}/sdapi/v1/progress?skip_current_image=true").json()
    assert without["current_image"] is None

    assert idle(ann)
    ann.interrupt()
    ann.skip()
    assert ann.txt2img(**SMALL).image.size == (64, 64)
    assert drawing.is_alive()
    assert not idle(joe)

    assert joe.interrupt() == {}
    drawing.join(PATIENCE_S)
    assert drawing.result.images == []
    assert drawing.result.info["all_seeds"] == [7]
    assert idle(joe)


def test_interrupt_leaves_jobs_of_the_same_key_alone(keyed_server: tuple[str, dict[str, str]]) -> None:
    url, keys = keyed_server
    key = next(iter(keys.values()))
    joe = api_at(url, key)
    with httpx.Client(base_url=url, headers={"x-api-key": key}) as jobs:
        job = jobs.post("/v1/jobs", json=LONG | {"seed": 8}).json()
        joe.interrupt()
        assert idle(joe)
        assert jobs.get(f"/v1/jobs/{job['id']}").json()["state"] in ("queued", "running")
        jobs.post(f"/v1/jobs/{job['id']}/cancel")


def test_skip_stops_the_picture_that_is_shown(server: str, api: webuiapi.WebUIApi) -> None:
    drawing = GenerationBody(api_at(server), **SMALL | {"steps": 200}, batch_size=2)
    drawing.wait_for_a_step(api)
    assert api.skip() is None
    drawing.join(PATIENCE_S)
    assert len(drawing.result.images) == 1
    assert drawing.result.info["all_seeds"] == [8]


def test_a_client_that_goes_away_stops_its_pictures(server: str, api: webuiapi.WebUIApi) -> None:
    job = ask_and_go(f"{server}/sdapi/v1/txt2img", LONG)
    with httpx.Client(base_url=server) as jobs:
        assert ended(jobs, job["id"])["state"] == "cancelled"
    assert idle(api)


# Finished pictures


def test_a_picture_says_how_it_was_made(api: webuiapi.WebUIApi) -> None:
    drawn = api.txt2img(**SMALL, negative_prompt="green, blue", sampler_name="DPM++ 2M", scheduler="Karras")
    read = api.png_info(drawn.image)
    assert read.info == drawn.info["infotexts"][0]
    parameters = read.parameters
    assert (parameters["Prompt"], parameters["Negative prompt"]) == ("a red apple", "green, blue")
    assert (parameters["Seed"], parameters["Size-1"], parameters["Size-2"]) == ("7", "64", "64")
    assert (parameters["Sampler"], parameters["Schedule type"]) == ("DPM++ 2M", "Karras")
    assert "safelight" in read.json["items"]


def test_other_programs_pictures_are_read_too(api: webuiapi.WebUIApi) -> None:
    image = picture()
    said = {"positive_prompt": "a pear", "seed": 3, "steps": 9, "cfg_scale": 5, "scheduler": "dpmpp_2m_k", "width": 64}
    image.info["invokeai_metadata"] = json.dumps(said | {"height": 64})
    parameters = api.png_info(image).parameters
    assert (parameters["Prompt"], parameters["Seed"], parameters["Steps"]) == ("a pear", "3", "9")
    assert (parameters["Sampler"], parameters["Schedule type"]) == ("DPM++ 2M", "Karras")
    nothing = api.png_info(picture())
    assert (nothing.info, nothing.parameters) == ("", {})


def test_pictures_are_made_larger(api: webuiapi.WebUIApi) -> None:
    single = api.extra_single_image(picture(size=(40, 30)), upscaler_1="Lanczos", upscaling_resize=2)
    assert single.image.size == (80, 60)
    # The upscaler "None" is the default there, and does nothing.
    assert api.extra_single_image(picture(size=(40, 30))).image.size == (40, 30)
    wanted: dict[str, Any] = {"resize_mode": 1, "upscaling_resize_w": 64, "upscaling_resize_h": 64}
    batch = api.extra_batch_images([picture(size=(40, 32)), picture(size=(200, 100))], upscaler_1="Lanczos", **wanted)
    assert [image.size for image in batch.images] == [(64, 64), (64, 64)]
    whole = api.extra_single_image(picture(size=(40, 32)), upscaler_1="Lanczos", upscaling_crop=False, **wanted)
    assert whole.image.size == (80, 64)


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"upscaler_1": "SwinIR 4x"}, 400, "SwinIR 4x"),
        ({"gfpgan_visibility": 1}, 400, "gfpgan_visibility"),
        ({"upscaler_1": "Lanczos", "upscaling_resize": 9}, 422, "upscaling_resize"),
        ({"image": "bm90IGEgcGljdHVyZQ=="}, 400, "not a picture"),
        ({"image": "http://localhost/apple.png"}, 400, "private network"),
        ({"image": in_base64(picture(size=(1000, 1000))), "upscaler_1": "Lanczos", "upscaling_resize": 8}, 400, "most"),
    ],
)
def test_invalid_upscales_are_refused(client: httpx.Client, fields: dict[str, Any], status: int, says: str) -> None:
    answered, detail = refused(client, "/extra-single-image", {"image": in_base64(picture())} | fields)
    assert answered == status
    assert says in detail


def test_nothing_here_describes_pictures(client: httpx.Client) -> None:
    status, detail = refused(client, "/interrogate", {"image": in_base64(picture()), "model": "clip"})
    assert status == 404
    assert "clip" in detail


def test_the_programs_of_the_docs_page_run(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "clients" / "automatic1111.md").read_text()
    code = "\n".join(re.findall(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    assert "7860" in code
    exec(code.replace("7860", str(urlsplit(server).port)), {})
    with Image.open("apple.png") as apple:
        assert apple.size == (128, 128)


def test_dynamic_prompts_makes_the_choices(api: webuiapi.WebUIApi) -> None:
    """Whatever its version; off, or not named, braces are plain text."""
    prompt = "a {red|green} apple"

    def drawn(**scripts: Any) -> list[str]:
        return api.txt2img(**SMALL | {"prompt": prompt}, alwayson_scripts=scripts).info["all_prompts"]

    assert drawn() == drawn(**{"Dynamic Prompts v2.17.1": {"args": [False]}}) == [prompt]
    assert drawn(**{"Dynamic Prompts v2.17.1": {"args": [True, True]}}) == ["a red apple", "a green apple"]
    [one] = drawn(**{"dynamic prompts v3": {"args": [True, False]}})
    assert one in ("a red apple", "a green apple")


def test_a_network_that_is_not_installed_says_what_to_install(server: str) -> None:
    body = {"image": in_base64(picture()), "upscaler_1": "R-ESRGAN 4x+"}
    if bundled_folder() is None:
        answer = httpx.post(f"{server}/sdapi/v1/extra-single-image", json=body)
        assert answer.status_code == 400
        assert "safelight[upscale]" in answer.text


# Base64


@pytest.mark.parametrize("how", ["lines of 76", "lines of MIME", "a newline at its end", "data URL in lines"])
def test_base64_may_hold_white_space_at_every_door(client: httpx.Client, how: str) -> None:
    def spelt(image: Image.Image) -> str:
        plain = in_base64(image)
        lines = base64.encodebytes(base64.b64decode(plain)).decode()
        return {
            "lines of 76": lines,
            "lines of MIME": lines.replace("\n", "\r\n"),
            "a newline at its end": plain + "\n",
            "data URL in lines": f"data:image/png;base64,{lines}",
        }[how]

    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    img2img = SMALL | {"init_images": [spelt(noise)], "mask": spelt(left_half())}
    for route, body in (
        ("/img2img", img2img),
        ("/extra-single-image", {"image": spelt(noise), "upscaler_1": "None"}),
        ("/extra-batch-images", {"imageList": [{"data": spelt(noise), "name": "x"}], "upscaler_1": "None"}),
        ("/png-info", {"image": spelt(noise)}),
        ("/../../controlnet/detect", {"controlnet_module": "invert", "controlnet_input_images": [spelt(noise)]}),
    ):
        answer = client.post(route, json=body)
        assert answer.status_code == 200, (route, answer.text)
    unit = {"module": "invert", "model": "nowhere", "image": spelt(noise)}
    led = SMALL | {"alwayson_scripts": {"controlnet": {"args": [unit]}}}
    assert "nowhere" in refused(client, "/txt2img", led)[1], "the picture was read, and the model is what is missing"
