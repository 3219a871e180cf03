"""Files of every kind are found in one way: in our folders, in the registry, in linked folders of other programs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tests.control_files import controlnet, write_encoder, write_ip_adapter, write_ldm
from tests.models.registry.files import write_vae
from tests.models.vision.test_upscalers import small_esrgan
from tests.tiny_models import checkpoint, load

from safelight.errors import InvalidRequest, UnknownControl, UnsafeFile
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.control_folder import ControlFolder
from safelight.models.checkpoints.linked import LinkedFolders, write_links
from safelight.models.registry.registered_models import RegisteredModels
from safelight.models.registry.registry import open_registry
from safelight.settings import Settings
from safelight.studio import Studio, open_studio

__all__ = ["checkpoint"]
Checkpoints = Callable[[str], Path]


@pytest.fixture
def files(checkpoint: Checkpoints, tmp_path: Path) -> dict[str, Path]:
    """A ControlNet, an IP-Adapter, an autoencoder and an upscaler."""
    tiny = load(checkpoint("sd1"))
    folder = tmp_path / "files"
    folder.mkdir()
    encoder = write_encoder(folder / "image_encoder")
    write_ldm(folder / "net.safetensors", controlnet(tiny))
    save_file(small_esrgan().state_dict(), folder / "sharp.safetensors")
    return {
        "controlnet": folder / "net.safetensors",
        "ip-adapter": write_ip_adapter(folder / "ip.safetensors", tiny, encoder=encoder),
        "vae": write_vae(folder / "soft.safetensors"),
        "upscaler": folder / "sharp.safetensors",
    }


def names_in(studio: Studio) -> set[str]:
    found = {
        *ControlFolder(studio.models.catalogue).paths("control"),
        *ControlFolder(studio.models.catalogue).paths("ip-adapter"),
    }
    return found | {*studio.parts.folder.paths("vae"), *studio.upscalers.names()}


def test_versions_of_every_kind_are_used_by_name_number_and_alias(files: dict[str, Path], home: Path) -> None:
    settings = Settings(home=home)
    with open_registry(settings) as registry:
        versions = {kind: registry.add(file) for kind, file in files.items()}
        assert {kind: version.kind for kind, version in versions.items()} == {kind: kind for kind in files}
        for version in versions.values():
            registry.point(version.name, "production", version)
    with open_studio(settings) as studio:
        assert {"net", "ip", "soft", "sharp", "net@production", "sharp@production"} <= names_in(studio)
        for label in ("", "@1", "@production"):
            folder, parts = ControlFolder(studio.models.catalogue), studio.parts.folder
            assert folder.find("control", f"net{label}")[1] == versions["controlnet"].digest
            assert folder.find("ip-adapter", f"ip{label}")[1] == versions["ip-adapter"].digest
            assert parts.pin("vae", f"soft{label}").digest == versions["vae"].digest
            assert studio.upscalers.pin(f"sharp{label}").digest == versions["upscaler"].digest


def test_a_spec_finds_the_version_it_was_made_with_after_the_name_moved_on(
    files: dict[str, Path], home: Path, checkpoint: Checkpoints
) -> None:
    settings = Settings(home=home)
    with open_registry(settings) as registry:
        first = registry.add(files["controlnet"])
        write_ldm(files["controlnet"], controlnet(load(checkpoint("sd1")), seed=9))
        second = registry.add(files["controlnet"])
        assert (first.number, second.number) == (1, 2)
    with open_studio(settings) as studio:
        folder = ControlFolder(studio.models.catalogue)
        assert folder.find("control", "net")[1] == second.digest
        assert folder.find("control", "net", digest=first.digest)[0].read_bytes() == first.path.read_bytes()
        with pytest.raises(InvalidRequest, match="the picture would differ"):
            folder.find("control", "net", digest="0" * 64)


def test_a_linked_tree_of_automatic1111_is_seen_with_all_its_kinds(files: dict[str, Path], tmp_path: Path) -> None:
    tree, home = tmp_path / "webui" / "models", tmp_path / "home"
    places = {"controlnet": "ControlNet", "vae": "VAE", "upscaler": "ESRGAN"}
    for kind, place in places.items():
        (tree / place).mkdir(parents=True)
        shutil.copy(files[kind], tree / place)
    home.mkdir()
    write_links(home, [tree])
    with open_studio(Settings(home=home)) as studio:
        assert {"net", "soft", "sharp"} <= names_in(studio)


def test_a_link_that_leads_out_of_the_folder_is_refused_for_every_kind(files: dict[str, Path], home: Path) -> None:
    for place, kind in (("controlnets", "controlnet"), ("vaes", "vae"), ("upscalers", "upscaler")):
        (home / place).mkdir()
        (home / place / "out.safetensors").symlink_to(files[kind])
    with open_studio(Settings(home=home)) as studio:
        for look in (
            lambda: ControlFolder(studio.models.catalogue).path("control", "out"),
            lambda: studio.parts.folder.find("vae", "out"),
            lambda: studio.upscalers.pin("out"),
        ):
            with pytest.raises(UnsafeFile, match="is a link out of"):
                look()


def test_strangers_find_what_is_listed_and_no_paths(files: dict[str, Path], home: Path) -> None:
    shutil.copytree(files["controlnet"].parent, home / "controlnets")
    settings = Settings(home=home)
    with open_studio(settings) as studio:
        studio.see(Catalogue(home, sources=(RegisteredModels(settings), LinkedFolders(home)), listed_only=True))
        assert ControlFolder(studio.models.catalogue).path("control", "net") == home / "controlnets" / "net.safetensors"
        with pytest.raises(UnknownControl):
            ControlFolder(studio.models.catalogue).path("control", str(files["controlnet"]))
