"""The same picture again, and what is said when it cannot be."""

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.cli.conftest import Call

QUICK = ("--steps", 2, "--seed", 7)


def test_a_picture_comes_out_the_same(safelight: Call) -> None:
    safelight("generate", "a red apple", *QUICK)
    result = safelight("replay", "pictures/a-red-apple-7.png", "--json", "--out", "again")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert (said["same"], said["identical"], said["max_difference"]) == (True, True, 0)
    assert Path(said["path"]).name == "a-red-apple-7-replayed.png"


@pytest.mark.parametrize("kind", ["jpeg", "webp", "avif"])
def test_a_lossy_file_is_compared_as_far_as_it_can_tell(kind: str, safelight: Call) -> None:
    made = safelight("generate", "a red apple", *QUICK, "--format", kind, "--quiet").stdout.strip()
    result = safelight("replay", made)
    assert result.exit_code == 0, result.stdout
    assert "lossy" in result.stdout


def test_another_picture_with_the_same_record_is_told_apart(safelight: Call, tmp_path: Path) -> None:
    safelight("generate", "a red apple", *QUICK)
    with Image.open("pictures/a-red-apple-7.png") as image:
        notes = PngInfo()
        notes.add_text("safelight", image.info["safelight"])
        Image.new("RGB", image.size, "blue").save("blue.png", pnginfo=notes)
        Image.new("RGB", (8, 8), "blue").save("small.png", pnginfo=notes)
    changed, small = safelight("replay", "blue.png"), safelight("replay", "small.png")
    assert (changed.exit_code, small.exit_code) == (1, 1)
    assert "different: at most" in changed.stdout
    assert "the sizes differ" in small.stdout


def test_another_watermark_does_not_make_it_another_picture(
    safelight: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFELIGHT_TRUST_WATERMARK", "true")
    said = safelight("generate", "a red apple", *QUICK, "--json")
    file = json.loads(said.stdout.splitlines()[-1])["path"]
    same = json.loads(safelight("replay", file, "--json").stdout)
    assert (same["identical"], same["notes"]) == (True, [])
    assert safelight("trust", "rotate", "--watermark").exit_code == 0
    rotated = json.loads(safelight("replay", file, "--json").stdout)
    assert rotated["identical"] is True
    assert "another key" in rotated["notes"][0]
    with Image.open(file) as image:
        image.load()
        texts = PngInfo()
        for name in ("parameters", "safelight"):
            texts.add_text(name, image.info[name])
        image.point(lambda level: 255 - level).save(tmp_path / "forged.png", pnginfo=texts)
    assert safelight("replay", str(tmp_path / "forged.png"), "--json").exit_code == 1


def test_a_small_change_shows_where_the_file_loses_nothing(safelight: Call) -> None:
    """About 42 dB: within what a JPEG loses, and not within what a PNG does."""
    safelight("generate", "a red apple", *QUICK)
    with Image.open("pictures/a-red-apple-7.png") as image:
        notes = PngInfo()
        notes.add_text("safelight", image.info["safelight"])
        image.point(lambda level: level + 2 if level < 128 else level - 2).save("near.png", pnginfo=notes)
    changed = safelight("replay", "near.png")
    assert changed.exit_code == 1
    assert "different: at most 2 of 255" in changed.stdout


def test_a_changed_model_is_named(safelight: Call, model_folder: Path) -> None:
    safelight("generate", "a red apple", *QUICK, "--model", model_folder)
    config = model_folder / "scheduler" / "scheduler_config.json"
    text = config.read_text()
    config.unlink()
    config.write_text(text + "\n")
    result = safelight("replay", "pictures/a-red-apple-7.png")
    assert result.exit_code == 2
    assert "in the spec: the picture would differ" in result.stderr


def test_a_start_picture_that_is_gone_is_asked_for(
    safelight: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (128, 128), "red").save("red.png")
    Image.new("RGB", (128, 128), "blue").save("blue.png")
    made = safelight("generate", "a red apple", *QUICK, "--init", "red.png", "--quiet").stdout.strip()
    monkeypatch.setenv("SAFELIGHT_HOME", str(tmp_path / "elsewhere"))
    missing, wrong = safelight("replay", made), safelight("replay", made, "--init", "blue.png")
    assert (missing.exit_code, wrong.exit_code) == (2, 2)
    assert "give it with --init FILE" in missing.stderr
    assert "this is not the picture that" in wrong.stderr
    assert safelight("replay", made, "--init", "red.png").exit_code == 0


def test_another_programs_settings_are_drawn_with_a_model_that_is_here(safelight: Call) -> None:
    notes = PngInfo()
    notes.add_text("parameters", "a cat\nSteps: 2, Sampler: Euler a, CFG scale: 7, Seed: 3, Size: 64x64, Model: dreams")
    Image.new("RGB", (64, 64), "blue").save("theirs.png", pnginfo=notes)
    refused = safelight("replay", "theirs.png")
    assert refused.exit_code == 2
    assert "automatic1111 with model 'dreams'" in refused.stderr
    assert "--model NAME|PATH|HUB_ID" in refused.stderr
    assert safelight("replay", "theirs.png", "--model", "mini").exit_code == 1  # drawn, and of course another picture


def test_a_seed_of_64_bits_is_drawn_by_those_that_are_heeded(safelight: Call) -> None:
    """ComfyUI's have so many, and a picture of its settings is that of the lower half, there and here."""
    inputs: dict[str, object] = {"steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    inputs |= {"latent_image": ["2", 0], "positive": ["3", 0], "negative": ["4", 0]}
    for seed in (7, 2**40 + 7):
        graph: dict[str, object] = {
            "1": {"class_type": "KSampler", "inputs": inputs | {"seed": seed}},
            "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64}},
            "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},
            "4": {"class_type": "CLIPTextEncode", "inputs": {"text": ""}},
        }
        notes = PngInfo()
        notes.add_text("prompt", json.dumps(graph))
        Image.new("RGB", (64, 64), "blue").save(f"{seed}.png", pnginfo=notes)
        result = safelight("replay", f"{seed}.png", "--model", "mini", "--out", "again")
        assert result.exit_code == 1, result.stderr  # drawn, and of course another picture
    with Image.open("again/7-replayed.png") as low, Image.open(f"again/{2**40 + 7}-replayed.png") as high:
        assert low.tobytes() == high.tobytes()


def test_a_picture_without_a_record_is_refused(safelight: Call) -> None:
    Image.new("RGB", (64, 64)).save("plain.png")
    assert "has no known settings in its metadata" in safelight("replay", "plain.png").stderr
    made = safelight("generate", "a red apple", *QUICK, "--metadata", "minimal", "--quiet").stdout.strip()
    assert "--metadata minimal" in safelight("replay", made).stderr
