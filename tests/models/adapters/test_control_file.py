"""What is read of a ControlNet, T2I-Adapter or IP-Adapter before it is loaded, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.control_files import (
    LDM,
    adapters_in,
    control,
    controlnet,
    t2i_adapter,
    union,
    write_control_lora,
    write_diffusers,
    write_encoder,
    write_folder,
    write_ip_adapter,
    write_ldm,
    write_tencent,
)
from tests.fakes import spec_for
from tests.models.ldm_files import KINDS as LDM_KINDS
from tests.models.ldm_files import layer, unet
from tests.models.ldm_files import write as write_ldm_model
from tests.tiny_models import CPU

from safelight.errors import (
    CorruptModel,
    IncompatibleControl,
    InvalidRequest,
    UnknownControl,
    UnsafeFile,
    UnsupportedOption,
)
from safelight.models.adapters.control_effect import ControlEffect
from safelight.models.adapters.control_file import describe_control, describe_file
from safelight.models.adapters.ip_file import require_adapter
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.control_folder import ControlFolder
from safelight.models.checkpoints.families import describe
from safelight.models.networks.load import Model
from safelight.models.networks.size_estimate import control_bytes
from safelight.spec import ControlRequest

Models = Callable[[str], Model]
NAMES: dict[str, str] = {"name": "net", "model_name": "tiny"}


def seen(path: Path, model: Model) -> Any:
    return describe_control(path, model.description, **NAMES)


def test_a_single_file_is_read_as_its_folder_is(model: Models, tmp_path: Path) -> None:
    """All that matters of the configuration is found in shapes, or taken from the model."""
    for kind in ("sd1", "sd2", "sdxl"):
        net = controlnet(model(kind))
        folder = seen(write_folder(tmp_path / kind, net), model(kind)).config
        for write in (write_ldm, write_diffusers):
            file = seen(write(tmp_path / f"{kind}.safetensors", net), model(kind)).config
            plain = json.loads(json.dumps(file))
            for name, value in plain.items():
                said = folder[name]
                assert value == ([said] * len(value) if isinstance(value, list) and isinstance(said, int) else said), (
                    name
                )


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_the_original_layout_is_named_as_diffusers_renames_it(kind: str, tmp_path: Path) -> None:
    """A file that is built as the original code builds it, for a model that is a single file too."""
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    about = LDM_KINDS[kind]
    first, residuals = about.channels[0], 0
    shapes = {name: shape for name, shape in unet(about) if not name.startswith(("output_blocks", "out."))}
    widths = [first]
    for level, channels in enumerate(about.channels):
        widths += [channels] * (about.layers + (level < len(about.channels) - 1))
    for residuals, width in enumerate(widths):
        shapes |= dict(layer(f"zero_convs.{residuals}.0", width, width, 1, 1))
    shapes |= dict(layer("middle_block_out.0", width, width, 1, 1))
    for place, (out, into) in enumerate([(16, 3), (16, 16), (32, 16), (32, 32), (96, 32), (96, 96), (256, 96)]):
        shapes |= dict(layer(f"input_hint_block.{2 * place}", out, into, 3, 3))
    shapes |= dict(layer("input_hint_block.14", first, 256, 3, 3))
    dice = torch.Generator().manual_seed(1)
    tensors = {f"control_model.{name}": torch.randn(shape, generator=dice) for name, shape in shapes.items()}
    path = tmp_path / "control.safetensors"
    save_file(tensors, path)

    description = describe(write_ldm_model(tmp_path / "model.safetensors", kind))
    found = describe_file(path, description)
    theirs = convert_controlnet_checkpoint(dict(tensors), dict(found.config))
    ours = {ours: tensors[name] for name, ours in found.names.items()}
    # diffusers passes over what SDXL is told beside its prompt.
    assert {name for name in ours if not name.startswith("add_embedding.")} == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert found.config["conditioning_embedding_out_channels"] == [16, 32, 96, 256]


def test_half_precision_files_are_brought_to_the_models_format(model: Models, tmp_path: Path) -> None:
    ours = model("sd1")
    one = control(write_ldm(tmp_path / "half.safetensors", controlnet(ours), dtype=torch.float16), ours)
    assert {param.dtype for param in one.net.network.parameters()} == {torch.float32}


def test_smaller_nets_than_their_models_are_read_too(model: Models, tmp_path: Path) -> None:
    """Published for SDXL: blocks without attention, in a single file that has no configuration."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    config = dict(controlnet(model("sdxl")).config) | {"down_block_types": ("DownBlock2D", "DownBlock2D")}
    small = ControlNetModel.from_config({name: value for name, value in config.items() if not name.startswith("_")})
    found = seen(write_diffusers(tmp_path / "small.safetensors", small), model("sdxl"))
    assert found.config["down_block_types"] == ["DownBlock2D", "DownBlock2D"]
    control(tmp_path / "small.safetensors", model("sdxl"))


@pytest.mark.parametrize("write", [write_folder, write_diffusers, write_ldm])
def test_a_net_for_another_family_is_refused_from_its_header(
    write: Callable[[Path, Any], Path], model: Models, tmp_path: Path
) -> None:
    path = write(tmp_path / "net.safetensors", controlnet(model("sdxl")))
    with pytest.raises(IncompatibleControl, match=r"net.* does not fit"):
        seen(path, model("sd1"))
    wide = write(tmp_path / "wide.safetensors", controlnet(model("sd2")))
    with pytest.raises(IncompatibleControl, match=r"prompt tokens have width 1024, the model's 32; it seems made for"):
        seen(wide, model("sd1"))


def test_a_transformer_takes_none_of_them(model: Models, tmp_path: Path) -> None:
    path = write_folder(tmp_path / "net", controlnet(model("sd1")))
    with pytest.raises(IncompatibleControl, match="the model's network is a transformer"):
        seen(path, model("sd3"))
    with pytest.raises(IncompatibleControl, match="the model's network is a transformer"):
        require_adapter(path, model("flux").description, **NAMES)


def test_an_adapter_for_another_family_is_refused_from_its_header(model: Models, tmp_path: Path) -> None:
    for write in (write_folder, write_tencent):
        path = write(tmp_path / f"{write.__name__}.safetensors", t2i_adapter(model("sd1")))
        with pytest.raises(IncompatibleControl):
            seen(path, model("sdxl"))
    encoder = write_encoder(tmp_path / "image_encoder")
    path = write_ip_adapter(tmp_path / "ip.safetensors", model("sd2"), encoder=encoder)
    with pytest.raises(
        IncompatibleControl, match="image tokens have width 1024, the model's prompt tokens 32; it seems"
    ):
        require_adapter(path, model("sd1").description, **NAMES)


OTHERS = {
    "lllite_unet_input_blocks_1_1.down.0.weight": "LLLite",
    "transformer_blocks.0.attn.to_q.weight": "transformer",
    "conv1.weight": "none of the tensors",
}


@pytest.mark.parametrize("key", OTHERS)
def test_other_things_of_that_name_are_called_by_their_own(key: str, model: Models, tmp_path: Path) -> None:
    save_file({key: torch.zeros(4)}, tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedOption, match=OTHERS[key]):
        seen(tmp_path / "other.safetensors", model("sd1"))


def test_a_control_lora_takes_the_room_of_the_net_it_becomes(model: Models, tmp_path: Path) -> None:
    net, ours = controlnet(model("sd1")), model("sd1")
    path = write_control_lora(tmp_path / "lora.safetensors", net, ours)
    assert control_bytes([path], CPU) == sum(tensor.nbytes for tensor in net.state_dict().values())
    tensors = load_file(path)
    [wide] = [name for name in tensors if name.endswith("input_blocks.0.0.down")]
    save_file(tensors | {wide: tensors[wide][:2].contiguous()}, tmp_path / "garbled.safetensors")
    with pytest.raises(CorruptModel, match="Control-LoRA for another model"):
        control(tmp_path / "garbled.safetensors", ours)


def test_damaged_files_are_errors_that_say_so(model: Models, tmp_path: Path) -> None:
    ours = model("sd1")
    path = write_ldm(tmp_path / "net.safetensors", controlnet(ours))
    tensors = load_file(path)
    save_file({name: t for name, t in tensors.items() if "zero_convs.1" not in name}, tmp_path / "less.safetensors")
    with pytest.raises(CorruptModel, match="lacks 2 tensors"):
        control(tmp_path / "less.safetensors", ours)
    save_file({name: t for name, t in tensors.items() if "resnets" in name or "input_hint" in name}, tmp_path / "no")
    with pytest.raises(CorruptModel, match="lacks"):
        control(tmp_path / "no", ours)
    save_file(tensors | {"control_model.input_blocks.9.0.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(IncompatibleControl, match="1 tensors that no ControlNet for this model has"):
        control(tmp_path / "more.safetensors", ours)
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(UnsafeFile):
        control(tmp_path / "pickle.safetensors", ours)
    folder = write_folder(tmp_path / "folder", controlnet(ours))
    (folder / "config.json").write_text(json.dumps({"_class_name": "FluxControlNetModel"}))
    with pytest.raises(UnsupportedOption, match="FluxControlNetModel"):
        seen(folder, ours)


def test_a_file_has_every_tensor_of_the_table() -> None:
    """The tests' own table gives no two modules one name."""
    assert len(LDM) == len(set(LDM.values()))


def put(home: Path, model: Model) -> ControlFolder:
    (home / "controlnets" / "old").mkdir(parents=True)
    write_ldm(home / "controlnets" / "canny.safetensors", controlnet(model))
    write_ldm(home / "controlnets" / "old" / "canny.safetensors", controlnet(model, seed=1))
    write_folder(home / "controlnets" / "depth", controlnet(model, seed=2))
    encoder = write_encoder(home / "ip-adapters" / "image_encoder")
    write_ip_adapter(home / "ip-adapters" / "ip.safetensors", model, encoder=encoder)
    return ControlFolder(Catalogue(home))


def test_names_stand_for_files_and_for_folders(model: Models, tmp_path: Path) -> None:
    folder = put(tmp_path, model("sd1"))
    assert list(folder.paths("control")) == ["canny", "depth"]
    assert folder.path("control", "canny") == tmp_path / "controlnets" / "canny.safetensors"
    assert list(folder.paths("ip-adapter")) == ["ip"]
    assert list(folder.paths("image-encoder")) == ["image_encoder"]
    assert folder.encoder_for(folder.path("ip-adapter", "ip"), None) == "image_encoder"
    digests = {folder.find("control", name)[1] for name in ("canny", "depth")}
    assert [len(digest) for digest in digests] == [64, 64]
    before = folder.find("control", "depth")[1]
    config = tmp_path / "controlnets" / "depth" / "config.json"
    config.write_text(config.read_text().replace('"rgb"', '"bgr"'))
    assert folder.find("control", "depth")[1] != before, "the configuration counts"


def test_adapters_find_the_encoder_beside_them_in_the_layout_they_are_published_in(
    model: Models, tmp_path: Path
) -> None:
    """Two folders of adapters, each with an image encoder of the same name."""
    home = tmp_path / "ip-adapters"
    for place in ("models", "sdxl_models"):
        encoder = write_encoder(home / place / "image_encoder")
        write_ip_adapter(home / place / f"ip-{place}.safetensors", model("sd1"), encoder=encoder)
    strangers = ControlFolder(Catalogue(tmp_path, listed_only=True))
    for place, encoder in (("models", "image_encoder"), ("sdxl_models", "sdxl_models/image_encoder")):
        found = strangers.encoder_for(strangers.path("ip-adapter", f"ip-{place}"), None)
        assert found == encoder
        assert strangers.path("image-encoder", found) == home / place / "image_encoder"


def test_what_is_not_there_is_an_error_with_the_nearest_name(model: Models, tmp_path: Path) -> None:
    folder = put(tmp_path, model("sd1"))
    with pytest.raises(UnknownControl, match="did you mean 'canny'"):
        folder.path("control", "cany")
    with pytest.raises(UnknownControl, match="there are none in SAFELIGHT_HOME/depth-models"):
        folder.path("depth", "dpt")
    with pytest.raises(InvalidRequest, match="the picture would differ"):
        folder.find("control", "canny", digest="0" * 64)
    path = str(tmp_path / "controlnets" / "canny.safetensors")
    assert folder.path("control", path) == Path(path)
    with pytest.raises(UnknownControl):
        ControlFolder(Catalogue(tmp_path, listed_only=True)).path("control", path)
    write_encoder(tmp_path / "image-encoders" / "other")
    other = write_ip_adapter(
        tmp_path / "ip-adapters" / "deep" / "er" / "lost.safetensors",
        model("sd1"),
        encoder=tmp_path / "image-encoders" / "other",
    )
    with pytest.raises(InvalidRequest, match="fits several image encoders, image_encoder, other"):
        folder.encoder_for(other, None)


def test_a_union_is_told_what_its_hint_shows(model: Models, tmp_path: Path) -> None:
    ours = model("sdxl")
    (tmp_path / "controlnets").mkdir()
    write_diffusers(tmp_path / "controlnets" / "union.safetensors", union(ours))
    write_folder(tmp_path / "controlnets" / "plain", controlnet(ours))
    effect = ControlEffect(Catalogue(tmp_path))

    def pinned(name: str = "union", **said: Any) -> Any:
        request = ControlRequest(model=name, image="0" * 64, hint="0" * 64, **said)
        return effect.pin_one(request, ours.description, model_name="tiny").hint_kind

    assert pinned(preprocessor="canny") == "hard-edge"
    assert pinned(preprocessor="depth/dpt") == "depth"
    assert pinned(preprocessor="canny", hint_kind="pose") == "pose"
    assert pinned("plain", preprocessor="canny") is None
    with pytest.raises(InvalidRequest, match=r"needs the kind of its hint.*pose, depth, .*segmentation$"):
        pinned()
    with pytest.raises(InvalidRequest, match="does not support hints of the kind 'tile'"):
        pinned(preprocessor="tile")
    with pytest.raises(InvalidRequest, match="has no hint kind"):
        pinned("plain", hint_kind="pose")


def test_nets_stay_in_memory_until_others_need_the_room(model: Models, tmp_path: Path) -> None:
    ours = model("sd1")
    put(tmp_path, ours)
    effect = ControlEffect(Catalogue(tmp_path))
    requests = [ControlRequest(model=name, image="0" * 64, hint="0" * 64) for name in ("canny", "depth")]
    pins = tuple(effect.pin_one(request, ours.description, model_name="tiny") for request in requests)
    first = effect.net(pins[0], ours)
    assert effect.net(pins[0], ours) is first
    allocations = effect.allocations(spec_for(ours).model_copy(update={"controls": pins}), CPU)
    assert [(allocation.kind, allocation.name) for allocation in allocations] == [
        ("control", "canny"),
        ("control", "depth"),
    ]
    assert allocations[0].size_bytes == first.size_bytes
    allocations[0].drop()
    assert effect.net(pins[0], ours) is not first


def test_an_encoder_of_another_width_is_refused_by_name(model: Models, tmp_path: Path) -> None:
    from tests.control_files import picture_led

    ours = model("sd1")
    put(tmp_path, ours)
    config = tmp_path / "ip-adapters" / "image_encoder"
    encoder = write_encoder(tmp_path / "image-encoders" / "wide")
    said = json.loads((encoder / "config.json").read_text()) | {"projection_dim": 24}
    (encoder / "config.json").write_text(json.dumps(said))
    tensors = load_file(encoder / "model.safetensors")
    tensors["visual_projection.weight"] = torch.zeros(24, 24)
    save_file(tensors, encoder / "model.safetensors")
    assert config.is_dir()
    with pytest.raises(IncompatibleControl, match="it reads 20 numbers, but the encoder gives 24"):
        picture_led(adapters_in(tmp_path), ours, "ip", encoder="wide")
