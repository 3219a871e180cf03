"""FaceID adapters: told by their headers, refused by what is wrong, and given what they read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.control_files import LOOK, PICTURES, adapters_in, picture_led, write_encoder, write_ip_adapter
from tests.face_files import face, write_face_model, write_faceid
from tests.fakes import spec_for
from tests.models.adapters.test_control_file import NAMES

from safelight.errors import CorruptModel, IncompatibleControl, InvalidRequest, UnsupportedOption
from safelight.models.adapters.ip_adapter import require_whole
from safelight.models.adapters.ip_effect import IpAdapterEffect
from safelight.models.adapters.ip_file import has_shortcut, require_adapter
from safelight.models.networks.load import Model
from safelight.models.weights.convert import convert_pickle
from safelight.spec import PicturePromptRequest, parse_draft
from safelight.spec.effects import PinnedPicturePrompt

Models = Callable[[str], Model]


@pytest.fixture(scope="module")
def home(model: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("faces")
    folder = home / "ip-adapters"
    encoder = write_encoder(folder / "image_encoder")
    write_ip_adapter(folder / "pictures.safetensors", model("sd1"), encoder=encoder)
    write_faceid(folder / "face.safetensors", model("sd1"))
    write_faceid(folder / "face-plus.safetensors", model("sd1"), encoder=encoder)
    return home


def pinned(home: Path, ours: Model, **wish: Any) -> PinnedPicturePrompt:
    request = PicturePromptRequest.model_validate(wish)
    return adapters_in(home).pin_one(request, ours.description, model_name=ours.name)


def test_a_kind_that_nobody_knows_is_called_that(model: Models, tmp_path: Path) -> None:
    strange = {
        "image_proj.norm.weight": torch.zeros(32),
        "image_proj.proj.0.weight": torch.zeros(64, 128),
        "ip_adapter.1.to_k_ip.weight": torch.zeros(16, 32),
    }
    save_file(strange, tmp_path / "strange.safetensors")
    with pytest.raises(UnsupportedOption, match="of no known kind"):
        require_adapter(tmp_path / "strange.safetensors", model("sd1").description, **NAMES)


def test_a_file_of_its_authors_is_converted_and_read(home: Path, model: Models, tmp_path: Path) -> None:
    """They come as pickles of two dictionaries."""
    tensors = load_file(home / "ip-adapters" / "face.safetensors")
    nested: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        nested[part][rest] = tensor
    torch.save(nested, tmp_path / "face.bin")
    (tmp_path / "ip-adapters").mkdir()
    convert_pickle(tmp_path / "face.bin", tmp_path / "ip-adapters" / "face.safetensors")
    theirs, ours = (
        picture_led(adapters_in(where), model("sd1"), "face", image=None, faces=[face()]).pictures[0]
        for where in (home, tmp_path)
    )
    assert torch.equal(theirs.positive.tokens, ours.positive.tokens)
    assert theirs.positive.adapter.lora is not None
    assert ours.positive.adapter.lora is not None
    assert theirs.positive.adapter.lora.terms.keys() == ours.positive.adapter.lora.terms.keys()


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({"model": "pictures", "faces": [face()]}, "no face embeddings"),
        ({"model": "pictures", "image": LOOK, "faces": [face()]}, "no face embeddings"),
        ({"model": "pictures", "image": LOOK, "face_model": "arcface"}, "no face embeddings"),
        ({"model": "pictures", "image": LOOK, "shortcut": True}, "no FaceID Plus"),
        ({"model": "face", "image": LOOK, "faces": [face()]}, "an embedding alone"),
        ({"model": "face", "faces": [face()], "encoder": "image_encoder"}, "leave out encoder"),
        ({"model": "face", "faces": [face()], "shortcut": True}, "no FaceID Plus"),
        ({"model": "face-plus", "faces": [face()]}, "a picture too"),
        ({"model": "face-plus", "image": LOOK, "faces": [face(), face(2)]}, "one face and its picture"),
        ({"model": "face", "image": LOOK}, "none in SAFELIGHT_HOME/face-models, or give its embedding as faces"),
    ],
)
def test_what_an_adapter_does_not_read_is_refused(home: Path, model: Models, wish: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        pinned(home, model("sd1"), **wish)


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({}, "image: is needed; a FaceID adapter takes faces too"),
        ({"faces": [face()[:511]]}, "512 items"),
        ({"faces": [[*face()[:511], float("nan")]]}, "finite"),
        ({"faces": [face()], "face_model": "arcface"}, "face_model: makes an embedding of the picture"),
    ],
)
def test_what_is_no_face_is_refused_by_the_draft_itself(wish: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        parse_draft({"prompt": "a man", "picture_prompts": [{"model": "face", **wish}]})


@pytest.mark.needs("onnx", "onnxruntime")
def test_the_only_face_model_is_taken_and_pinned(model: Models, tmp_path: Path) -> None:
    write_faceid(tmp_path / "ip-adapters" / "face.safetensors", model("sd1"))
    write_face_model(tmp_path / "face-models" / "buffalo_l" / "w600k_r50.onnx")
    request = pinned(tmp_path, model("sd1"), model="face", image=LOOK)
    assert request.face_model == "w600k_r50"
    again = pinned(tmp_path, model("sd1"), **request.model_dump())
    assert again == request
    write_face_model(tmp_path / "face-models" / "glintr100.onnx", seed=5)
    with pytest.raises(InvalidRequest, match="there are glintr100, w600k_r50: name one"):
        pinned(tmp_path, model("sd1"), model="face", image=LOOK)
    other = pinned(tmp_path, model("sd1"), model="face", image=LOOK, face_model="glintr100")
    with pytest.raises(InvalidRequest, match="the picture would differ"):
        pinned(tmp_path, model("sd1"), **(other.model_dump() | {"face_model": "w600k_r50"}))


def test_version_2_is_told_by_name_or_said() -> None:
    def shortcut(file: str, **wish: Any) -> bool:
        return has_shortcut(PicturePromptRequest(model="any", image=LOOK, **wish), Path(file))

    assert shortcut("ip-adapter-faceid-plusv2_sd15.safetensors")
    assert not shortcut("ip-adapter-faceid-plus_sd15.safetensors")
    assert shortcut("renamed.safetensors", shortcut=True)
    assert not shortcut("ip-adapter-faceid-plusv2_sd15.safetensors", shortcut=False)


def changed(home: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(home / "ip-adapters" / "face.safetensors")
    change(tensors)
    save_file(tensors, to)
    return to


DOWN = "ip_adapter.2.to_v_lora.down.weight"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda tensors: tensors.pop(DOWN), CorruptModel),
        (lambda tensors: tensors.update({DOWN: tensors[DOWN][:, 1:].clone()}), IncompatibleControl),
        (lambda tensors: tensors.update({DOWN: torch.tensor(1.0)}), IncompatibleControl),
        (lambda tensors: tensors.pop("image_proj.proj.2.weight"), CorruptModel),
        (lambda tensors: tensors.pop("ip_adapter.3.to_v_ip.weight"), IncompatibleControl),
    ],
    ids=["half a LoRA", "another layer's LoRA", "a number for a LoRA", "no projection", "half a layer"],
)
def test_a_damaged_file_is_refused_before_it_is_loaded(
    home: Path, model: Models, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], error: type[Exception]
) -> None:
    path = changed(home, tmp_path / "face.safetensors", change)
    with pytest.raises(error):
        require_whole(path, "face", network=model("sd1").unet, name="face")


def test_faces_are_read_once_and_no_record_of_a_request_shows_them(home: Path, model: Models) -> None:
    ours, effect = model("sd1"), adapters_in(home)
    one, same, other = (
        picture_led(effect, ours, "face", image=None, faces=[face(seed)], weight=weight).pictures[0]
        for seed, weight in ((1, 1.0), (1, 0.5), (2, 1.0))
    )
    assert one.positive is same.positive
    assert one.positive is not other.positive
    assert one.positive.adapter is other.positive.adapter
    spec = spec_for(ours).model_copy(update={"picture_prompts": (one.pinned,)})
    assert str(face()[0]) in spec.model_dump_json()
    assert str(face()[0]) not in repr(spec)


def test_a_spec_from_a_file_that_names_no_reader_is_refused(home: Path, model: Models) -> None:
    effect, ours = adapters_in(home), model("sd1")
    for name, why in (("pictures", "image encoder"), ("face", "face model"), ("face-plus", "image encoder")):
        look = PinnedPicturePrompt(model=name, digest=digest_of(effect, name), image=LOOK)
        spec = spec_for(ours).model_copy(update={"picture_prompts": (look,)})
        with pytest.raises(InvalidRequest, match=f"names no {why}"):
            effect.load(spec, ours, PICTURES)


def digest_of(effect: IpAdapterEffect, name: str) -> str:
    return effect.folder.find("ip-adapter", name)[1]


def test_its_memory_is_that_of_its_lora_too(home: Path, model: Models) -> None:
    ours, effect = model("sd1"), adapters_in(home)
    [one] = picture_led(effect, ours, "face", image=None, faces=[face()]).pictures
    spec = spec_for(ours).model_copy(update={"picture_prompts": (one.pinned,)})
    [allocation] = effect.allocations(spec, ours.placement)
    assert allocation.size_bytes == one.positive.adapter.size_bytes
    allocation.drop()
    assert not effect.loaded
    assert not effect.read
