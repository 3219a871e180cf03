import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_models import KINDS, ZERO_SNR_SCHEDULER, load

from safelight.diffusion.samplers import find_sampler
from safelight.diffusion.schedules import schedule_for
from safelight.errors import CorruptModel, InvalidRequest, UnsupportedOption
from safelight.models.checkpoints.families import describe, require_sides

Checkpoints = Callable[[str], Path]


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("kind", "family", "native", "told"),
    [
        ("sd1", "sd1", False, False),
        ("sd2", "sd2", False, False),
        ("sdxl", "sdxl", False, False),
        ("inpaint", "sd1", True, False),
        ("sdxl_inpaint", "sdxl", True, False),
        ("lcm", "sd1", False, True),
    ],
)
def test_a_checkpoint_is_recognised_by_its_configuration(
    checkpoint: Checkpoints, kind: str, family: str, native: bool, told: bool
) -> None:
    about = describe(checkpoint(kind))
    assert (about.family.name, about.inpaints_natively, about.takes_guidance) == (family, native, told)
    assert (about.vae_scale, about.latent_channels, about.side_step) == (4, 4, 8)
    assert about.supports_cfg != about.takes_guidance
    assert about.force_zeros_for_empty_prompt == (family == "sdxl")


@pytest.mark.parametrize(
    ("kind", "family", "native", "told", "t5"),
    [
        ("sd3", "sd3", False, False, "text_encoder_3"),
        ("sd3_without_t5", "sd3", False, False, ""),
        ("sd3_inpaint", "sd3", True, False, "text_encoder_3"),
        ("flux", "flux", False, True, "text_encoder_2"),
        ("schnell", "flux", False, False, "text_encoder_2"),
    ],
)
def test_a_transformer_is_recognised_too(
    checkpoint: Checkpoints, kind: str, family: str, native: bool, told: bool, t5: str
) -> None:
    about = describe(checkpoint(kind))
    assert (about.family.name, about.inpaints_natively, about.takes_guidance) == (family, native, told)
    assert (about.t5, about.latent_channels, about.supports_cfg) == (t5, 16, family == "sd3")


def test_flux_defaults_depend_on_its_guidance_input(checkpoint: Checkpoints) -> None:
    dev, schnell = (describe(checkpoint(kind)).defaults for kind in ("flux", "schnell"))
    assert (dev.sampler, dev.steps, dev.guidance) == ("Default", 28, 3.5)
    assert (schnell.sampler, schnell.steps, schnell.guidance) == ("Default", 4, 1.0)


@pytest.mark.parametrize(
    ("width", "why"), [(100, "multiple of 8 pixels, such as 96"), (200, "at most 192 pixels, not 200")]
)
def test_sides_that_a_network_cannot_draw_are_refused(checkpoint: Checkpoints, width: int, why: str) -> None:
    with pytest.raises(InvalidRequest, match=f"width: .*{why}"):
        require_sides(describe(checkpoint("sd3")), width, 64)


def test_flux_without_t5_is_refused(checkpoint: Checkpoints, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint("flux"), tmp_path / "flux"))
    edit(copy / "model_index.json", text_encoder_2=[None, None])
    with pytest.raises(CorruptModel, match="has no text_encoder_2"):
        describe(copy)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_defaults_of_every_kind_can_be_drawn_with(checkpoint: Checkpoints, kind: str) -> None:
    about = describe(checkpoint(kind))
    spacing = replace(about.family.step_spacing, patches=16)
    schedule = schedule_for(
        find_sampler(about.defaults.sampler), about.scheduler, steps=about.defaults.steps, spacing=spacing
    )
    assert schedule.steps == about.defaults.steps


def test_zero_terminal_snr_brings_its_sampler_and_its_rescaling(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", **ZERO_SNR_SCHEDULER)
    defaults = describe(folder).defaults
    assert (defaults.sampler, defaults.guidance_rescale) == ("DDIM", 0.7)


def test_a_turbo_model_draws_in_two_steps_without_guidance(folder: Path) -> None:
    edit(
        folder / "scheduler" / "scheduler_config.json",
        _class_name="EulerAncestralDiscreteScheduler",
        timestep_spacing="trailing",
    )
    defaults = describe(folder).defaults
    assert (defaults.steps, defaults.guidance, defaults.sampler) == (2, 0.0, "Default")
    assert int(defaults.steps * defaults.strength) >= 1, "or image-to-image would have no step left"


def test_settings_in_the_folder_come_before_the_defaults(folder: Path) -> None:
    (folder / "safelight.json").write_text(json.dumps({"defaults": {"steps": 9, "sampler": "DDIM", "width": 128}}))
    defaults = describe(folder).defaults
    assert (defaults.steps, defaults.sampler, defaults.width, defaults.height) == (9, "DDIM", 128, 64)


@pytest.mark.parametrize("defaults", [{"stepz": 9}, {"steps": 0}, {"width": 99}])
def test_invalid_defaults_are_named(folder: Path, defaults: dict[str, int]) -> None:
    (folder / "safelight.json").write_text(json.dumps({"defaults": defaults}))
    with pytest.raises(CorruptModel, match=rf"safelight\.json.*{next(iter(defaults))}"):
        describe(folder)


@pytest.mark.parametrize("pipeline", ["FluxFillPipeline", "SanaPipeline", None])
def test_other_pipelines_are_refused_by_name(folder: Path, pipeline: str | None) -> None:
    edit(folder / "model_index.json", _class_name=pipeline)
    with pytest.raises(UnsupportedOption, match=f"is a {pipeline}; supported: StableDiffusionPipeline"):
        describe(folder)


def test_other_channels_are_refused_by_number(folder: Path) -> None:
    edit(folder / "unet" / "config.json", in_channels=7)
    with pytest.raises(UnsupportedOption, match="7 input channels; supported: 4, 8 and 9"):
        describe(folder)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("unet/config.json", "in_channels"),
        ("unet/config.json", "down_block_types"),
        ("vae/config.json", "latent_channels"),
        ("vae/config.json", "block_out_channels"),
        ("text_encoder/config.json", "hidden_size"),
    ],
)
@pytest.mark.parametrize("value", [None, "garbage", {}])
def test_an_invalid_value_is_a_corrupt_model(folder: Path, name: str, key: str, value: object) -> None:
    edit(folder / name, **{key: value})
    with pytest.raises(CorruptModel):
        load(folder)
