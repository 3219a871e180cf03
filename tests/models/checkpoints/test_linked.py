"""Model folders of other programs, used where they lie."""

from pathlib import Path

import pytest
from tests.models.registry.files import write_ip_adapter, write_lora, write_vae

from safelight.errors import InvalidRequest, UnknownLora, UnsafeFile
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.control_folder import ControlFolder
from safelight.models.checkpoints.linked import LinkedFolders, link, read_links, scan_folder, unlink


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def webui(tmp_path: Path) -> Path:
    """As AUTOMATIC1111 lays it out."""
    root = tmp_path / "webui"
    for path in (
        "models/Stable-diffusion/sub/dream.safetensors",
        "models/Stable-diffusion/dream.png",
        "models/Lora/ink.safetensors",
        "models/LyCORIS/locon.safetensors",
        "models/VAE/sharp.safetensors",
        "models/ControlNet/canny.safetensors",
        "models/ESRGAN/4x.safetensors",
        "embeddings/bad-hands.safetensors",
    ):
        touch(root / path)
    return root


def named(root: Path) -> dict[str, list[str]]:
    return {kind: sorted(files) for kind, files in scan_folder(root).files.items() if files}


def test_automatic1111s_folders_are_known(webui: Path) -> None:
    assert named(webui) == {
        "checkpoint": ["dream"],
        "vae": ["sharp"],
        "lora": ["ink", "locon"],
        "embedding": ["bad-hands"],
        "controlnet": ["canny"],
        "upscaler": ["4x"],
    }


def test_comfyuis_folders_are_known_and_diffusers_folders_in_them(tmp_path: Path) -> None:
    for path in (
        "checkpoints/night.safetensors",
        "checkpoints/whole/model_index.json",
        "checkpoints/whole/unet/diffusion_pytorch_model.safetensors",
        "loras/ink.safetensors",
        "vae/sharp.safetensors",
        "controlnet/depth/config.json",
        "controlnet/depth/diffusion_pytorch_model.safetensors",
        "upscale_models/4x.safetensors",
        "ipadapter/plus.safetensors",
        "embeddings/hands.safetensors",
    ):
        touch(tmp_path / path)
    assert named(tmp_path) == {
        "checkpoint": ["night", "whole"],
        "vae": ["sharp"],
        "lora": ["ink"],
        "embedding": ["hands"],
        "controlnet": ["depth"],
        "ip-adapter": ["plus"],
        "upscaler": ["4x"],
    }
    assert scan_folder(tmp_path).files["controlnet"]["depth"] == tmp_path / "controlnet" / "depth"


def test_ip_adapters_are_found_in_each_programs_folders(tmp_path: Path) -> None:
    comfyui, webui, invokeai = (tmp_path / name for name in ("comfyui", "webui", "invokeai"))
    write_ip_adapter(comfyui / "models" / "ipadapter" / "plus.safetensors")
    write_ip_adapter(webui / "models" / "ControlNet" / "beside-nets.safetensors")
    write_ip_adapter(webui / "extensions" / "sd-webui-controlnet" / "models" / "of-extension.safetensors")
    touch(webui / "models" / "ControlNet" / "canny.safetensors")
    own = invokeai / "models" / "sd-1" / "ip_adapter"
    for name in ("one", "two"):
        write_ip_adapter(own / name / "ip_adapter.safetensors")
        (own / name / "image_encoder.txt").write_text("InvokeAI/ip_adapter_sd_image_encoder")
    write_ip_adapter(invokeai / "models" / "0c5e" / "numbered.safetensors")
    assert named(comfyui) == {"ip-adapter": ["plus"]}
    assert named(webui) == {"controlnet": ["canny"], "ip-adapter": ["beside-nets", "of-extension"]}
    assert named(invokeai) == {"ip-adapter": ["numbered", "one", "two"]}
    for folder in (comfyui, webui, invokeai):
        link(tmp_path / "home", folder)
    folder = ControlFolder(Catalogue(tmp_path / "home", (LinkedFolders(tmp_path / "home"),), listed_only=True))
    assert {"plus", "beside-nets", "one", "two", "numbered"} < folder.paths("ip-adapter").keys()
    assert folder.path("ip-adapter", "two") == own / "two" / "ip_adapter.safetensors"


def test_invokeais_pickled_ip_adapters_are_named_by_their_folders_too(tmp_path: Path) -> None:
    for name in ("one", "two"):
        touch(tmp_path / "ip_adapter" / name / "ip_adapter.bin")
        touch(tmp_path / "ip_adapter" / name / "image_encoder.txt")
    assert sorted(scan_folder(tmp_path).pickles["ip-adapter"]) == ["one", "two"]


def test_files_in_invokeais_numbered_folders_are_identified_by_their_headers(tmp_path: Path) -> None:
    write_lora(tmp_path / "3f2a" / "ink.safetensors")
    write_vae(tmp_path / "77b1" / "sharp.safetensors")
    touch(tmp_path / "901c" / "strange.safetensors")
    assert named(tmp_path) == {"lora": ["ink"], "vae": ["sharp"]}
    assert list(scan_folder(tmp_path).refused) == [tmp_path / "901c" / "strange.safetensors"]


def test_a_folder_of_one_kind_may_be_linked_by_itself(webui: Path) -> None:
    assert named(webui / "models" / "Lora") == {"lora": ["ink"]}


def test_linked_models_are_found_by_name_at_once(webui: Path, home: Path) -> None:
    link(home, webui)
    link(home, webui)
    assert read_links(home) == [webui]
    catalogue = Catalogue(home, (LinkedFolders(home),), listed_only=True)
    assert catalogue.find("ink", "lora") == webui / "models" / "Lora" / "ink.safetensors"
    later = touch(webui / "models" / "Lora" / "later.safetensors")
    assert catalogue.find("later", "lora") == later
    assert catalogue.names("lora") == ["ink", "later", "locon"]
    own = touch(home / "loras" / "ink.safetensors")
    assert catalogue.find("ink", "lora") == own, "ours goes first"
    unlink(home, webui)
    with pytest.raises(UnknownLora):
        catalogue.find("later", "lora")


def test_pickles_are_reported_with_the_command_that_converts_them(webui: Path, home: Path) -> None:
    touch(webui / "embeddings" / "old.pt")
    tree = link(home, webui)
    assert "safelight models convert" in tree.refused[webui / "embeddings" / "old.pt"]
    assert Catalogue(home, (LinkedFolders(home),)).pickles("embedding") == {"old": webui / "embeddings" / "old.pt"}


@pytest.mark.parametrize("folder", [False, True])
def test_links_out_of_a_linked_folder_are_refused_with_the_command_to_use(
    webui: Path, home: Path, tmp_path: Path, folder: bool
) -> None:
    outside = touch(tmp_path / "elsewhere" / "secret.safetensors")
    if folder:
        (webui / "models" / "Lora" / "secret").symlink_to(outside.parent, target_is_directory=True)
    else:
        (webui / "models" / "Lora" / "secret.safetensors").symlink_to(outside)
    tree = link(home, webui)
    assert "secret" not in tree.files["lora"]
    assert ["a link out of" in why for why in tree.refused.values()] == [True]
    with pytest.raises(UnsafeFile, match=f"safelight models link {outside.parent}"):
        Catalogue(home, (LinkedFolders(home),)).find("secret", "lora")


def test_a_link_within_the_folder_is_used(webui: Path) -> None:
    (webui / "models" / "Lora" / "same.safetensors").symlink_to(webui / "models" / "Lora" / "ink.safetensors")
    assert named(webui)["lora"] == ["ink", "locon", "same"]


def test_a_link_out_of_a_folder_of_ours_is_refused(home: Path, tmp_path: Path) -> None:
    (home / "loras").mkdir()
    (home / "loras" / "ink.safetensors").symlink_to(touch(tmp_path / "ink.safetensors"))
    with pytest.raises(UnsafeFile, match="a link out of"):
        Catalogue(home).find("ink", "lora")


def test_an_unmounted_disk_does_not_hide_other_models(webui: Path, home: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    link(home, away)
    link(home, webui)
    away.rmdir()
    assert Catalogue(home, (LinkedFolders(home),)).find("ink", "lora")


def test_folders_that_cannot_be_linked_are_refused_with_the_reason(home: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="is not a folder"):
        link(home, tmp_path / "nowhere")
    with pytest.raises(InvalidRequest, match="overlap"):
        link(home, home.parent)
    with pytest.raises(InvalidRequest, match="is not linked; linked are: none"):
        unlink(home, tmp_path)
    (home / "links.json").write_text("[1")
    with pytest.raises(InvalidRequest, match=r"links\.json is invalid"):
        Catalogue(home, (LinkedFolders(home),)).find("ink", "lora")
