"""Samplers and upscalers of plugins stand beside safelight's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import safelight
from tests.plugin_files import SAMPLERS, UPSCALER, built_in_samplers, install, packages, see
from tests.tiny_models import CPU, checkpoint, load

from safelight.api import generate
from safelight.diffusion import samplers
from safelight.diffusion.schedules import schedule_for
from safelight.errors import UnknownSampler, UnsupportedOption
from safelight.models.vision.upscalers import Upscalers
from safelight.plugins import Plugins
from safelight.settings import Settings
from safelight.studio import load_plugins, open_studio

__all__ = ["built_in_samplers", "checkpoint", "packages", "safelight"]


@pytest.fixture
def with_samplers(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(packages, "extra-samplers", SAMPLERS, samplers={"Euler Poly": "POLY", "Mine a": "MINE"})
    see(packages, monkeypatch)


@pytest.mark.filterwarnings("ignore")  # diffusers on numpy 2
@pytest.mark.usefixtures("with_samplers")
def test_a_plugins_scheduler_becomes_a_table(tmp_path: Path, checkpoint: Any) -> None:
    """Euler's step, between noise levels that fall by one factor."""
    samplers.add_samplers(Plugins())
    config = load(checkpoint("sd1")).description.scheduler
    made = schedule_for("Euler Poly", config, steps=9, strength=0.8, cache=tmp_path / "tables")
    assert not (tmp_path / "tables").exists()  # its class may change
    betas = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, config["num_train_timesteps"]) ** 2
    levels = np.sqrt(1 / np.cumprod(1 - betas) - 1)
    sigma = [*np.geomspace(levels[-1], levels[0], 9)[2:], 0]
    # The scheduler works in float32, in which 1 - alpha of the lowest level, 0.0008, has four digits.
    np.testing.assert_allclose(made.sigma, sigma, rtol=1e-4)
    np.testing.assert_allclose(made.m[:, 0], np.diff(sigma), rtol=1e-4)
    np.testing.assert_allclose(made.x[:, 0], 1, rtol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("with_samplers")
@pytest.mark.parametrize("spacing", ["", " SGM Uniform"])
def test_a_class_that_inherits_from_diffusers_draws_its_noise(spacing: str, checkpoint: Any) -> None:
    """It is diffusers' ancestral Euler under another name."""
    samplers.add_samplers(Plugins())
    config = load(checkpoint("sd1")).description.scheduler
    made, known = (schedule_for(f"{name}{spacing}", config, steps=9) for name in ("Mine a", "Euler a"))
    assert (made.packed == known.packed).all()
    assert (made.draws == known.draws).all()


def test_a_checkpoint_cannot_name_a_class_outside_of_diffusers() -> None:
    for name in ("extra_samplers:Ancestral", "os.system", "subprocess:Popen"):
        with pytest.raises(UnsupportedOption, match="this version of diffusers has no such scheduler"):
            schedule_for("Default", {"_class_name": name}, steps=3)


@pytest.mark.usefixtures("with_samplers")
def test_a_plugins_sampler_draws_is_listed_and_named_in_the_spec(
    home: Path, safelight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = safelight("samplers", "--json").stdout.splitlines()
    assert {"Euler Poly", "Mine a SGM Uniform"} <= {json.loads(line)["name"] for line in listed}
    result = safelight("generate", "apple", "--steps", 2, "--seed", 1, "--sampler", "e_poly", "--json")
    path = json.loads(result.stdout)["path"]
    said = json.loads(safelight("info", path, "--json").stdout)["spec"]
    assert said["sampler"] == "Euler Poly"
    assert [(one["kind"], one["package"]) for one in said["plugins"]] == [("sampler", "extra-samplers")]
    assert json.loads(safelight("replay", path, "--json").stdout)["identical"]
    with open_studio(Settings(home=home)) as studio:
        variant = generate("apple", studio=studio, sampler="Mine a SGM Uniform", seed=7, steps=2)[0].spec
        assert [one.name for one in variant.plugins] == ["Mine a"]
        with pytest.raises(UnknownSampler, match="did you mean 'Euler Poly'"):
            generate("apple", studio=studio, sampler="Euler Pol", seed=7, steps=2)
    samplers.SAMPLERS.pop("Euler Poly")
    monkeypatch.setenv("SAFELIGHT_PLUGINS", "off")
    without = safelight("replay", path)
    assert (without.exit_code, "extra-samplers 1.0" in without.stderr) == (2, True)


# Upscalers


@pytest.fixture
def with_blocks(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(packages, "blocks", UPSCALER, upscalers={"blocks": "Blocks"})
    see(packages, monkeypatch)


@pytest.mark.usefixtures("with_blocks")
def test_a_plugins_upscaler_enlarges_to_the_exact_size(safelight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 10), "red").save("small.png")
    large = safelight("upscale", "small.png", "--method", "blocks", "--scale", 3, "--json")
    said = json.loads(large.stdout)
    assert (said["width"], said["height"]) == (60, 30)
    spec = json.loads(safelight("info", said["path"], "--json").stdout)["spec"]
    assert spec["plugins"] == [{"kind": "upscaler", "name": "blocks", "package": "blocks", "version": "1.0"}]
    assert json.loads(safelight("replay", said["path"], "--json").stdout)["identical"]
    assert "did you mean 'blocks'" in " ".join(safelight("upscale", "small.png", "--method", "block").stderr.split())
    monkeypatch.setenv("SAFELIGHT_PLUGINS", "off")
    assert "upscaler: the upscaler 'blocks' of blocks 1.0 is off" in safelight("replay", said["path"]).stderr


@pytest.mark.usefixtures("with_blocks")
def test_a_plugins_upscaler_counts_in_memory_and_gives_way_to_a_file_of_its_name(home: Path) -> None:
    with open_studio(Settings(home=home)) as studio:
        catalogue = studio.models.catalogue
    _, _, enlargers = load_plugins(Settings(home=home), catalogue, CPU)
    upscalers = Upscalers(catalogue, CPU, enlargers)
    assert upscalers.names()[-1] == "blocks"
    pinned = upscalers.pin("blocks")
    [allocation] = upscalers.allocations(pinned)
    assert allocation.size_bytes == 1000
    allocation.drop()
    assert enlargers["blocks"].unloaded == 1  # type: ignore[attr-defined]
    (home / "upscalers").mkdir()
    (home / "upscalers" / "blocks.safetensors").write_bytes(b"a file")
    assert upscalers.pin("blocks").digest is not None
    assert upscalers.names().count("blocks") == 1
    assert upscalers.require("blocks", None) == pinned  # of a spec that was drawn before the file came
