"""LoRAs through each dialect: in tags, in fields, in lists, and in what is said of the picture."""

import base64
import json
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from tests.lora_files import write_kohya
from tests.serving.conftest import ended, serving, settings_in
from tests.tiny_models import load

from safelight.assets.read_metadata import read_metadata
from safelight.models.checkpoints.catalogue import MINI
from safelight.models.checkpoints.digest import file_sum
from safelight.models.registry.registry import open_registry
from safelight.spec import TextToImage

SMALL: dict[str, Any] = {"seed": 7, "steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("loras")
    (home / "loras").mkdir()
    write_kohya(home / "loras" / "ink.safetensors", load(MINI), metadata={"ss_output_name": "Ink v2"})
    return home


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[httpx.Client]:
    with serving(settings_in(home)) as url, httpx.Client(base_url=url) as client:
        yield client


def drawn(encoded: str) -> tuple[bytes, TextToImage, str]:
    file = base64.b64decode(encoded)
    read = read_metadata(file, max_pixels=10**6, max_file_bytes=10**7)
    assert isinstance(read.spec, TextToImage)
    return Image.open(BytesIO(file)).tobytes(), read.spec, read.raw["parameters"]


def tensors_of(file: Path) -> bytes:
    data = file.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def test_automatic1111_reads_tags_and_writes_them_again(client: httpx.Client, home: Path) -> None:
    digest = file_sum(home / "loras" / "ink.safetensors")
    pictures = {}
    for prompt in ("an apple", "an apple <lora:ink:0.8>"):
        answer = client.post("/sdapi/v1/txt2img", json=SMALL | {"prompt": prompt})
        pictures[prompt], spec, infotext = drawn(answer.json()["images"][0])
    assert spec.prompt == "an apple"
    assert [(lora.name, lora.digest, lora.weight) for lora in spec.loras] == [("ink", digest, 0.8)]
    assert infotext.startswith("an apple <lora:ink:0.8>\n")
    weights = sha256(tensors_of(home / "loras" / "ink.safetensors")).hexdigest()
    assert f'Lora hashes: "ink: {weights[:12]}"' in infotext, "as AUTOMATIC1111 counts: the weights, not the header"
    assert json.loads(answer.json()["info"])["extra_generation_params"]["Lora hashes"] == f"ink: {weights[:12]}"
    assert len(set(pictures.values())) == 2, "the LoRA changes the picture"


def test_automatic1111_lists_them(client: httpx.Client) -> None:
    [lora] = client.get("/sdapi/v1/loras").json()
    assert lora == {
        "name": "ink",
        "alias": "Ink v2",
        "path": "ink.safetensors",
        "metadata": {"ss_output_name": "Ink v2"},
    }


def test_extra_networks_may_be_switched_off(client: httpx.Client) -> None:
    body = SMALL | {"prompt": "an apple <lora:nowhere:0.8>", "disable_extra_networks": True}
    _, spec, _ = drawn(client.post("/sdapi/v1/txt2img", json=body).json()["images"][0])
    assert (spec.prompt, spec.loras) == ("an apple", ())


def test_openai_and_jobs_take_tags_and_fields_alike(client: httpx.Client) -> None:
    field = {"loras": [{"name": "ink", "weight": 0.8}], "prompt": "an apple"}
    tag = {"prompt": "an apple <lora:ink:0.8>"}
    openai = SMALL | {"size": "64x64"}
    by_field, by_tag = (
        drawn(client.post("/v1/images/generations", json=openai | said).json()["data"][0]["b64_json"])
        for said in (field, tag)
    )
    assert by_field[:2] == by_tag[:2]
    jobs = [client.post("/v1/jobs", json=SMALL | said).json() for said in (field, tag)]
    specs = [ended(client, job["id"])["spec"] for job in jobs]
    assert specs[0] == specs[1]
    assert specs[0]["loras"][0]["weight"] == 0.8


@pytest.mark.parametrize(
    ("lora", "status", "says"),
    [
        ({"name": "inc"}, 404, "did you mean 'ink'"),
        ({"name": "/etc/x.safetensors"}, 404, "no LoRA named"),
        ({"name": "ink", "digest": "0" * 64}, 400, "the picture would differ"),
        ({"name": "ink", "wait": 1}, 422, "wait"),
    ],
)
def test_invalid_loras_are_refused(client: httpx.Client, lora: dict[str, Any], status: int, says: str) -> None:
    answer = client.post("/v1/jobs", json=SMALL | {"prompt": "an apple", "loras": [lora]})
    assert answer.status_code == status or (status == 422 and answer.status_code == 400), answer.text
    assert says in answer.text


def test_what_is_registered_while_the_server_runs_is_known_at_once(client: httpx.Client, home: Path) -> None:
    with open_registry(settings_in(home)) as registry:
        model = registry.add(MINI, name="brand")
        registry.point("brand", "production", model)
        lora = registry.add(home / "loras" / "ink.safetensors", name="quill")
        names = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert names == ["mini", "brand", "brand@production"]
        assert "brand@production" in [model["model_name"] for model in client.get("/sdapi/v1/sd-models").json()]
        assert "quill" in [lora["name"] for lora in client.get("/sdapi/v1/loras").json()]
        body = SMALL | {"prompt": "an apple <lora:quill@1:0.8>", "size": "64x64", "model": "brand@production"}
        answer = client.post("/v1/images/generations", json=body)
        _, spec, _ = drawn(answer.json()["data"][0]["b64_json"])
        assert (spec.model_digest, spec.loras[0].digest) == (model.digest, lora.digest)
        for name in ("quill", "brand"):
            registry.remove(name, force=True)
