"""/v1/images and /v1/models, driven by the real `openai` client."""

import base64
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import openai
import pytest
from PIL import Image
from tests.serving.conftest import ask_and_go, ended, serving, settings_in

from safelight.errors import InvalidRequest
from safelight.serving.openai.bodies import GenerationMessage
from safelight.settings import Settings

SMALL = {"size": "64x64", "extra_body": {"steps": 2, "seed": 7}}


@pytest.fixture
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="sk-anything", max_retries=0) as client:
        yield client


def opened(data: str | None) -> Image.Image:
    assert data is not None
    return Image.open(BytesIO(base64.b64decode(data)))


def png(colour: str, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    file = BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


def test_pictures_from_words(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="a red apple", n=2, **SMALL)
    assert answer.data is not None
    first, second = (opened(data.b64_json) for data in answer.data)
    assert first.size == second.size == (64, 64)
    assert first.tobytes() != second.tobytes()
    assert answer.size == "64x64"
    assert answer.usage is not None
    assert answer.usage.input_tokens == 3


def test_a_size_beyond_the_models_own_is_begun_at_its_own(client: openai.OpenAI) -> None:
    extra = {"steps": 1, "seed": 7}
    stream = client.images.generate(prompt="a house", size="384x256", stream=True, partial_images=1, extra_body=extra)
    last = list(stream)[-1]
    assert last.type == "image_generation.completed"
    assert last.size == "384x256"
    picture = opened(last.b64_json)
    assert picture.size == (384, 256)
    spec = json.loads(picture.info["safelight"])["spec"]
    assert (spec["width"], spec["height"], spec["highres"]["strength"]) == (168, 112, 0.4)


def test_a_picture_is_not_drawn_over_at_a_size_that_the_model_cannot_keep_together(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"16 times the area .* It draws 128x128, 160x104") as caught:
        client.images.edit(image=("a.png", png("blue")), prompt="a red apple", size="512x512")
    assert caught.value.param == "size"


def test_the_operator_maps_openais_model_names(tmp_path: Path) -> None:
    table = "dall-e-3=mini gpt-image-*=not-here"
    with serving(settings_in(tmp_path).model_copy(update={"openai_models": table})) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="sk-anything", max_retries=0)
        listed = {model.id: model.model_dump()["root"] for model in client.models.list()}
        assert listed == {"mini": "mini", "dall-e-3": "mini"}
        one = client.models.retrieve("dall-e-3").model_dump()
        assert (one["id"], one["root"], one["sizes"][0]) == ("dall-e-3", "mini", "128x128")
        assert client.images.generate(model="dall-e-3", prompt="a red apple", **SMALL).data
        with pytest.raises(openai.NotFoundError, match="no model named 'not-here'"):
            client.images.generate(model="gpt-image-1", prompt="a red apple", **SMALL)
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt-image-1")


@pytest.mark.parametrize("table", ["dall-e-3", "=mini", "dall-e-3="])
def test_an_invalid_table_of_names_is_refused(table: str) -> None:
    with pytest.raises(InvalidRequest, match=r"SAFELIGHT_OPENAI_MODELS: .* THEIR_NAME=OUR_NAME"):
        Settings.from_environment({"SAFELIGHT_OPENAI_MODELS": table})


def test_a_seed_draws_the_same_picture(client: openai.OpenAI) -> None:
    one, two = (client.images.generate(prompt="a red apple", **SMALL).data for _ in range(2))
    assert one is not None
    assert two is not None
    assert one[0].b64_json == two[0].b64_json


def test_links_lead_to_the_picture(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="a red apple", response_format="url", output_format="jpeg", **SMALL)
    assert answer.data is not None
    assert answer.data[0].url is not None
    fetched = httpx.get(answer.data[0].url)
    assert fetched.headers["content-type"] == "image/jpeg"
    assert Image.open(BytesIO(fetched.content)).size == (64, 64)


def test_names_that_clients_have_built_in_are_the_servers_own_model(client: openai.OpenAI) -> None:
    assert client.images.generate(prompt="a cat", model="dall-e-3", quality="hd", style="vivid", **SMALL).data
    names = [model.id for model in client.models.list()]
    assert "mini" in names
    assert client.models.retrieve("mini").object == "model"
    with pytest.raises(openai.NotFoundError, match="did you mean 'mini'"):
        client.models.retrieve("mimi")


def test_quality_is_steps(client: openai.OpenAI, server: str) -> None:
    client.images.generate(prompt="a low house", quality="low", size="64x64")
    newest = httpx.get(f"{server}/v1/jobs?limit=1").json()["data"][0]
    assert newest["spec"]["steps"] == 10


def test_partial_images_come_before_the_whole_one(client: openai.OpenAI) -> None:
    body = {"steps": 8, "seed": 1}
    stream = client.images.generate(prompt="a red apple", size="64x64", stream=True, partial_images=2, extra_body=body)
    events = list(stream)
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert all(opened(event.b64_json).size == (64, 64) for event in events)
    assert [event.partial_image_index for event in events[:2]] == [0, 1]  # pyright: ignore
    assert events[-1].usage.total_tokens == 3  # pyright: ignore
    for event in events:
        GenerationMessage.model_validate({"event": event.type, "data": event.model_dump()})


def test_a_stream_that_fails_raises_in_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="no sampler named"):
        list(client.images.generate(prompt="x", stream=True, extra_body={"sampler": "nothing"}))


def test_edits_draw_anew_where_the_mask_is_transparent(client: openai.OpenAI) -> None:
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (32, 0, 64, 64))
    file = BytesIO()
    mask.save(file, "PNG")
    answer = client.images.edit(
        image=("a.png", png("blue")), mask=("m.png", file.getvalue()), prompt="a red apple", **SMALL
    )
    assert answer.data is not None
    edited = opened(answer.data[0].b64_json).convert("RGB")
    kept, drawn = edited.getpixel((4, 32)), edited.getpixel((60, 32))
    assert kept == (0, 0, 255)
    assert drawn != (0, 0, 255)


def test_several_pictures_and_variations(client: openai.OpenAI) -> None:
    pictures = [("a.png", png("blue")), ("b.png", png("red"))]
    assert client.images.edit(image=pictures, prompt="a house", **SMALL).data
    with pytest.deprecated_call():  # the SDK says so of variations; clients still call them
        varied = client.images.create_variation(image=("a.png", png("green")), extra_body={"steps": "2"})
    assert varied.data


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"size": "100x100"}, openai.BadRequestError, "size"),
        ({"size": "large"}, openai.BadRequestError, "size"),
        ({"size": "4096x64"}, openai.BadRequestError, "size"),
        ({"background": "transparent"}, openai.BadRequestError, "background"),
        ({"n": 11}, openai.BadRequestError, "n"),
        ({"model": "mimi"}, openai.NotFoundError, "model"),
    ],
)
def test_errors_arrive_typed(
    client: openai.OpenAI, fields: dict[str, object], error: type[openai.APIStatusError], param: str | None
) -> None:
    with pytest.raises(error) as caught:
        client.images.generate(prompt="a red apple", **fields)  # pyright: ignore
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_hostile_pictures_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.images.edit(image=("a.png", b"not a picture"), prompt="x")
    with pytest.raises(openai.BadRequestError, match="transparency is required"):
        client.images.edit(image=("a.png", png("blue")), mask=("m.png", png("white")), prompt="x")


def test_the_sdks_own_retry_draws_nothing_anew(server: str) -> None:
    body = {"prompt": "asked twice", "size": "64x64", "steps": 2}
    first, again = (
        httpx.post(f"{server}/v1/images/generations", json=body, headers={"x-stainless-retry-count": count}).json()
        for count in ("0", "1")
    )
    assert first["data"] == again["data"]
    other = httpx.post(f"{server}/v1/images/generations", json=body, headers={"x-stainless-retry-count": "0"}).json()
    assert other["data"] != first["data"], "a new request without a seed is a new picture"


def test_an_idempotency_key_works_without_a_seed(server: str) -> None:
    body = {"prompt": "keyed", "size": "64x64", "steps": 2}
    headers = {"Idempotency-Key": "images"}
    first, again = (httpx.post(f"{server}/v1/images/generations", json=body, headers=headers).json() for _ in range(2))
    assert first["data"] == again["data"]


def test_a_server_with_keys_requires_one(keyed_server: tuple[str, dict[str, str]]) -> None:
    url, keys = keyed_server
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-wrong", max_retries=0) as wrong:
        with pytest.raises(openai.AuthenticationError) as caught:
            wrong.images.generate(prompt="x")
        assert caught.value.code == "invalid_api_key"
    with openai.OpenAI(base_url=f"{url}/v1", api_key=keys["joe"]) as joe:
        assert joe.images.generate(prompt="a red apple", **SMALL).data


def test_a_client_that_goes_away_cancels_its_picture(server: str) -> None:
    body = {"prompt": "nobody waits", "size": "64x64", "steps": 1000}
    job = ask_and_go(f"{server}/v1/images/generations", body)
    with httpx.Client(base_url=server) as client:
        cancelled = ended(client, job["id"])
    assert (cancelled["spec"]["prompt"], cancelled["state"]) == ("nobody waits", "cancelled")
    assert cancelled["error"] is None


def test_a_stream_that_is_cut_off_cancels_nothing_where_its_key_can_bring_the_client_back(server: str) -> None:
    """As when the server itself is stopped in between."""
    body = {"prompt": "back soon", "size": "64x64", "steps": 300, "stream": True, "partial_images": 3}
    headers = {"Idempotency-Key": "back soon"}
    with httpx.stream("POST", f"{server}/v1/images/generations", json=body, headers=headers) as stream:
        next(line for line in stream.iter_lines() if "partial_image" in line)
    with httpx.Client(base_url=server) as client:
        [job] = [one for one in client.get("/v1/jobs").json()["data"] if one["spec"].get("prompt") == "back soon"]
        assert ended(client, job["id"])["state"] == "done"


def test_choices_in_the_prompt_are_expanded_if_requested(client: openai.OpenAI) -> None:
    small = SMALL | {"extra_body": {**SMALL["extra_body"], "expand": "combinatorial", "seed": 1}}
    both = client.images.generate(prompt="a {red|green} apple", **small).data
    assert both is not None
    one = client.images.generate(
        prompt="a red apple", **SMALL | {"extra_body": {**SMALL["extra_body"], "seed": 1}}
    ).data
    assert one is not None
    assert len(both) == 2
    assert opened(both[0].b64_json).tobytes() == opened(one[0].b64_json).tobytes()
    assert opened(both[1].b64_json).tobytes() != opened(one[0].b64_json).tobytes()
