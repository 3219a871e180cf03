"""The commands that only look: info, samplers, models, doctor."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.cli.conftest import Call

from safelight.cli.doctor import EXTRAS

COMFYUI = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "dreams.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red apple", "clip": ["1", 1]}},
    "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "4": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 7,
            "steps": 20,
            "cfg": 7.0,
            "sampler_name": "euler",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["1", 0],
            "positive": ["2", 0],
            "negative": ["2", 0],
            "latent_image": ["3", 0],
        },
    },
}
WRITTEN = {
    "automatic1111": {
        "parameters": "a red apple\n"
        "Steps: 20, Sampler: Euler, Schedule type: Karras, CFG scale: 7, Seed: 7, Size: 512x768"
    },
    "invokeai": {
        "invokeai_metadata": json.dumps(
            {
                "positive_prompt": "a red apple",
                "seed": 7,
                "steps": 20,
                "width": 512,
                "height": 768,
                "scheduler": "euler_k",
            }
        )
    },
    "comfyui": {"prompt": json.dumps(COMFYUI)},
}


@pytest.mark.parametrize("producer", WRITTEN)
def test_info_reads_what_other_programs_write(producer: str, safelight: Call) -> None:
    notes = PngInfo()
    for name, text in WRITTEN[producer].items():
        notes.add_text(name, text)
    Image.new("RGB", (64, 64)).save("theirs.png", pnginfo=notes)
    said = json.loads(safelight("info", "theirs.png", "--json").stdout)
    assert (said["producer"], said["prompt"], said["spec"]) == (producer, "a red apple", None)
    assert {"seed": 7, "steps": 20, "width": 512, "height": 768, "sampler": "Euler Karras"}.items() <= said[
        "settings"
    ].items()
    shown = safelight("info", "theirs.png").stdout
    assert producer in shown
    assert "Euler Karras" in shown


def test_info_of_a_plain_picture_and_of_no_picture(safelight: Call) -> None:
    Image.new("RGB", (64, 64)).save("plain.png")
    Path("words.txt").write_text("hello")
    assert "plain.png has no known settings in its metadata" in safelight("info", "plain.png").stdout
    assert json.loads(safelight("info", "words.txt", "--json").stderr)["error"]["code"] == "invalid_image"


def test_samplers_are_listed(safelight: Call) -> None:
    shown = safelight("samplers").stdout
    assert "DPM++ 2M" in shown
    assert "+ Karras, Exponential" in shown
    named = {json.loads(line)["name"] for line in safelight("samplers", "list", "--json").stdout.splitlines()}
    assert {"Euler a", "DPM++ 2M Karras"} <= named


def test_a_sampler_is_plotted(safelight: Call) -> None:
    result = safelight("samplers", "plot", "k_dpmpp_2m_ka", "--steps", 5, "--out", "curves.png")
    assert (result.exit_code, result.stdout) == (0, "curves.png\n"), result.stderr
    with Image.open("curves.png") as image:
        assert image.format == "PNG"
    assert safelight("samplers", "plot", "Euler", "--out", "curves.jpg").exit_code == 2
    assert "did you mean" in safelight("samplers", "plot", "Eulr").stderr


def test_models_are_listed_and_broken_ones_too(safelight: Call, home: Path) -> None:
    broken = home / "models" / "broken"
    broken.mkdir(parents=True)
    (broken / "model_index.json").write_text("{}")
    shown = safelight("models")
    assert (shown.exit_code, "mini" in shown.stdout, "broken" in shown.stdout) == (0, True, True)
    mini, other = (json.loads(line) for line in safelight("models", "list", "--json").stdout.splitlines())
    assert (mini["name"], mini["family"]) == ("mini", "sd1")
    assert "error" in other


def test_a_model_is_shown(safelight: Call) -> None:
    said = json.loads(safelight("models", "show", "mini", "--json").stdout)
    assert re.fullmatch("[0-9a-f]{64}", said["digest"])
    assert said["size_bytes"] > 1_000_000
    assert said["defaults"]["width"] == said["width"]
    assert "native size" in safelight("models", "show", "mini").stdout
    assert safelight("models", "show", "minni").exit_code == 2


def test_doctor_finds_this_machine_fit(safelight: Call) -> None:
    result = safelight("doctor", "--json")
    assert result.exit_code == 0, result.stdout
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert {"python", "processor", "torch", "device", "home", "embedded model"} <= findings.keys()
    assert all(finding["remedy"] for finding in findings.values() if finding["level"] != "ok")


def test_doctor_fails_where_nothing_can_be_stored(safelight: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_HOME", "/proc/nowhere")
    result = safelight("doctor")
    assert result.exit_code == 1
    assert "set SAFELIGHT_HOME" in result.stdout


def test_doctor_knows_the_extras_there_are() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert EXTRAS.keys() == project["optional-dependencies"].keys() - {"dev", "docs"}


def test_a_picture_is_made_larger(safelight: Call) -> None:
    Image.new("RGB", (50, 40), "red").save("small.png")
    result = safelight("upscale", "small.png", "--scale", 1.5)
    assert (result.exit_code, result.stdout) == (0, "pictures/small-x1.5.png  75x60\n"), result.stderr
    assert safelight("replay", "pictures/small-x1.5.png").exit_code == 0
    assert safelight("upscale", "small.png", "--scale", 100).exit_code == 2


def test_upscale_draws_over_in_tiles(safelight: Call) -> None:
    Image.new("RGB", (128, 128), "red").save("small.png")
    words = ("--method", "diffusion", "--prompt", "a red apple", "--steps", 4, "--seed", 1, "--json")
    result = safelight("upscale", "small.png", "--scale", 1.5, *words)
    assert result.exit_code == 0, result.output
    assert (json.loads(result.stdout)["width"], json.loads(result.stdout)["height"]) == (192, 192)
    assert safelight("upscale", "small.png", "--prompt", "a red apple").exit_code == 2
    wrong = safelight("upscale", "small.png", "--method", "lanczsos")
    assert wrong.exit_code == 2
    assert "did you mean 'lanczos'" in " ".join(wrong.output.split())
