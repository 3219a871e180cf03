"""Faces as prompts through every door: embeddings that are given, or a picture that a face model reads."""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import Call, safelight  # noqa: F401  a fixture
from tests.control_files import write_encoder
from tests.face_files import face, face_picture, seen_in, write_face_model, write_faceid
from tests.serving.conftest import serving, settings_in
from tests.tiny_models import load, write_sd1

from safelight.api import generate
from safelight.assets.read_metadata import read_metadata
from safelight.errors import InvalidImage, InvalidRequest
from safelight.settings import Settings
from safelight.spec import TextToImage, parse_spec
from safelight.studio import Studio, open_studio

pytestmark = pytest.mark.needs("onnx", "onnxruntime")
SMALL: dict[str, Any] = {"model": "tiny", "steps": 2, "width": 64, "height": 64, "seed": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    tiny = load(write_sd1(home / "models" / "tiny"))
    write_faceid(home / "ip-adapters" / "faceid.safetensors", tiny)
    encoder = write_encoder(home / "ip-adapters" / "image_encoder")
    write_faceid(home / "ip-adapters" / "faceid-plusv2.safetensors", tiny, encoder=encoder)
    write_face_model(home / "face-models" / "w600k_r50.onnx")
    return home


@pytest.fixture(scope="module")
def studio(home: Path) -> Iterator[Studio]:
    with open_studio(Settings(home=home)) as studio:
        yield studio


def drawn(studio: Studio, *prompts: dict[str, Any]) -> Any:
    [picture] = generate("a man", picture_prompts=prompts, studio=studio, **SMALL)
    return picture


def test_a_face_that_is_given_is_drawn_and_its_spec_is_enough_to_draw_it_again(studio: Studio) -> None:
    first = drawn(studio, {"model": "faceid", "faces": [face()]})
    [pinned] = first.spec.picture_prompts
    assert pinned.faces == (tuple(face()),)
    assert (pinned.image, pinned.encoder, pinned.face_model, pinned.shortcut) == (None, None, None, None)
    spec = parse_spec(first.spec.model_dump(mode="json"))
    assert (spec, spec.digest()) == (first.spec, first.spec.digest())
    again = drawn(studio, *(use.model_dump() for use in spec.picture_prompts))
    assert again.image.tobytes() == first.image.tobytes()
    other = drawn(studio, {"model": "faceid", "faces": [face(2)]})
    both = drawn(studio, {"model": "faceid", "faces": [face(), face(2)]})
    assert len({one.image.tobytes() for one in (first, other, both, drawn(studio))}) == 4


def test_a_picture_of_a_face_is_read_by_the_face_model(studio: Studio) -> None:
    """As if its embedding had been given; the spec has the picture and the model, and no embedding."""
    read = drawn(studio, {"model": "faceid", "image": face_picture()})
    [pinned] = read.spec.picture_prompts
    assert pinned.face_model == "w600k_r50"
    assert pinned.face_model_digest is not None
    assert pinned.faces == ()
    given = drawn(studio, {"model": "faceid", "faces": [seen_in(face_picture()).tolist()]})
    difference = np.asarray(read.image, dtype=int) - np.asarray(given.image, dtype=int)
    assert np.abs(difference).max() <= 1, "the pooling's sums are in another order"
    again = drawn(studio, pinned.model_dump())
    assert again.image.tobytes() == read.image.tobytes()


def test_plus_reads_the_picture_as_well(studio: Studio) -> None:
    read = drawn(studio, {"model": "faceid-plusv2", "image": face_picture()})
    [pinned] = read.spec.picture_prompts
    assert (pinned.encoder, pinned.face_model, pinned.shortcut) == ("image_encoder", "w600k_r50", True)
    given = drawn(studio, {"model": "faceid-plusv2", "image": face_picture(), "faces": [face(2)]})
    first = drawn(studio, {"model": "faceid-plusv2", "image": face_picture(), "shortcut": False})
    assert len({one.image.tobytes() for one in (read, given, first)}) == 3


def test_a_photograph_is_refused_before_it_is_queued(studio: Studio) -> None:
    with pytest.raises(InvalidImage, match="aligned, square face, 112 pixels wide or a multiple, not 640x480"):
        drawn(studio, {"model": "faceid", "image": Image.new("RGB", (640, 480))})


def test_over_http(home: Path) -> None:
    file = BytesIO()
    face_picture().save(file, "PNG")
    with serving(settings_in(home)) as url, httpx.Client(base_url=url, timeout=120) as client:

        def drawn(prompt: dict[str, Any]) -> Any:
            job = client.post("/v1/jobs", json={"prompt": "a man", "picture_prompts": [prompt], **SMALL})
            assert job.status_code == 202, job.text
            return client.get(f"/v1/jobs/{job.json()['id']}/wait?timeout_s=60").json()

        kept = client.post("/v1/files", files={"file": ("face.png", file.getvalue())}).raise_for_status().json()["id"]
        for prompt in ({"model": "faceid", "faces": [face()]}, {"model": "faceid", "image": kept}):
            done = drawn(prompt)
            assert (done["state"], done["error"]) == ("done", None)
        wrong = {"model": "faceid", "faces": [face()[:128]]}
        answer = client.post("/v1/jobs", json={"prompt": "a man", "picture_prompts": [wrong], **SMALL})
        assert answer.status_code == 400, answer.text
        assert "512 items" in answer.json()["error"]["message"]
        assert len(answer.text) < 1000


def test_on_the_command_line(
    safelight: Call,  # noqa: F811
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAFELIGHT_HOME", str(home))
    np.save(tmp_path / "face.npy", np.array(face(), dtype=np.float32))
    (tmp_path / "faces.json").write_text(json.dumps([face(), face(2)]))
    face_picture().save(tmp_path / "face.png")
    small = [word for name, value in SMALL.items() for word in (f"--{name}", value)]

    def generate(file: str, *more: str) -> Path:
        said = safelight("generate", "a man", "--ip", f"{tmp_path}/{file}:faceid:0.8", *small, "--quiet", *more)
        assert said.exit_code == 0, said.stderr
        return Path(said.stdout.strip())

    for name, count in (("face.npy", 1), ("faces.json", 2), ("face.png", 0)):
        file = generate(name)
        spec = read_metadata(file, max_pixels=10**6, max_file_bytes=10**7).spec
        assert isinstance(spec, TextToImage)
        [pinned] = spec.picture_prompts
        assert pinned.faces == tuple(tuple(face(number)) for number in range(1, count + 1))
        assert pinned.weight == 0.8
        assert json.loads(safelight("replay", file, "--json").stdout)["same"] is True
    number = str(face()[0]).encode()
    assert number in generate("face.npy").read_bytes()
    assert number not in generate("face.npy", "--metadata", "minimal").read_bytes(), "it is as personal as a prompt"
    listed = [json.loads(line) for line in safelight("control", "list", "--json").stdout.splitlines()]
    assert [one["name"] for one in listed if one["kind"] == "face-model"] == ["w600k_r50"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("face.npy", b"not numpy"), ("face.json", b"{}"), ("face.json", b'["a"]'), ("face.json", b"[[1, 2], [3]]")],
)
def test_files_without_embeddings_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    from safelight.cli.leads import faces_in

    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidRequest, match="face embeddings, each a list of 512 numbers"):
        faces_in(tmp_path / name)


def test_pickles_in_a_numpy_file_are_not_read(tmp_path: Path) -> None:
    from safelight.cli.leads import faces_in

    np.save(tmp_path / "face.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(InvalidRequest, match="Object arrays cannot be loaded"):
        faces_in(tmp_path / "face.npy")
