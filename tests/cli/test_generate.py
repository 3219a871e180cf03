"""From words to files, and every way in which it can be refused."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.conftest import Call
from tests.models.embeddings import write_a1111
from typer.testing import Result

from safelight.models.checkpoints.catalogue import MINI
from safelight.models.checkpoints.families import describe, text_widths

QUICK = ("--steps", 2, "--seed", 7)


def test_json_says_one_object_a_picture_and_nothing_else(safelight: Call, tmp_path: Path) -> None:
    result = safelight("generate", "a red apple", *QUICK, "-n", 2, "--json", "--out", "made/here")
    assert result.exit_code == 0, result.stderr
    said = [json.loads(line) for line in result.stdout.splitlines()]
    assert sorted(one["seed"] for one in said) == [7, 8]
    for one in said:
        assert list(one) == ["path", "seed", "width", "height", "spec_digest", "model_digest", "seconds"]
        assert re.fullmatch("[0-9a-f]{64}", one["spec_digest"])
        assert Path(one["path"]).parent == tmp_path / "made" / "here"
        with Image.open(one["path"]) as image:
            assert image.size == (one["width"], one["height"])
    assert result.stderr == ""


def test_a_path_and_a_seed_are_said_to_people_and_hints_on_request(safelight: Call) -> None:
    result = safelight("generate", "-", *QUICK, "--hints", "--format", "webp", input="a red apple\n")
    assert result.stdout.splitlines()[0] == "pictures/a-red-apple-7.webp  seed 7"
    assert "Try next:" in result.stdout
    assert "replay pictures/a-red-apple-7.webp" in result.stdout
    again = safelight("generate", "a red apple", "--steps", 2, "--seed", 8, "--quiet")
    assert again.stdout == "pictures/a-red-apple-8.png\n"


def test_a_size_that_the_model_does_not_draw_well_is_drawn_and_said(safelight: Call) -> None:
    result = safelight("generate", "a red apple", "--steps", 1, "--width", 256, "--height", 256)
    assert result.exit_code == 0
    assert "mini draws 128x128" in result.stderr
    assert "--width 128 --height 128 --highres 2 --highres-strength 0.4" in result.stderr
    quiet = safelight("generate", "a red apple", "--steps", 1, "--width", 256, "--height", 256, "--quiet")
    assert quiet.stderr == ""


def test_a_picture_drawn_again_is_replaced_by_nothing(safelight: Call, tmp_path: Path) -> None:
    safelight("generate", "a red apple", *QUICK)
    safelight("generate", "a red apple", *QUICK)
    safelight("generate", "a red apple", *QUICK, "--guidance", 5)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "a-red-apple-7-2.png",
        "a-red-apple-7.png",
    ]


def test_a_picture_is_started_from_masked_and_extended(safelight: Call, tmp_path: Path) -> None:
    Image.new("RGB", (128, 128), "red").save(tmp_path / "red.png")
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (32, 32, 96, 96))
    mask.save(tmp_path / "mask.png")
    masked = safelight("generate", "a hole", *QUICK, "--init", "red.png", "--mask", "mask.png", "--json")
    assert masked.exit_code == 0, masked.stderr
    with Image.open(json.loads(masked.stdout)["path"]) as image:
        assert image.getpixel((2, 2)) == (255, 0, 0)
    wider = safelight("generate", "a wall", *QUICK, "--init", "red.png", "--extend", "left=64", "--json")
    assert wider.exit_code == 0, wider.stderr
    assert (json.loads(wider.stdout)["width"], json.loads(wider.stdout)["height"]) == (192, 128)


REFUSED: dict[str, tuple[tuple[object, ...], str, str]] = {
    "unknown sampler": (("--sampler", "Eulr a"), "unknown_sampler", "did you mean 'Euler a'"),
    "unknown model": (("--model", "minni"), "unknown_model", "did you mean 'mini'"),
    "NaN guidance": (("--guidance", "nan"), "invalid_request", "guidance: Input should be a finite number"),
    "odd width": (("--width", 100), "invalid_request", "width: Input should be a multiple of 8 (got 100)"),
    "negative seed": (("--seed", -1), "invalid_request", "seed: Input should be greater than or equal to 0"),
    "a seed of 33 bits": (
        ("--seed", 2**32 + 5),
        "invalid_request",
        "the same picture as 5 (got 4294967301)",
    ),
    "no number": (("--steps", "ten"), "invalid_request", "Invalid value for '--steps'"),
    "no such option": (("--stepz", 3), "invalid_request", "--steps"),
    "interval": (("--guidance-interval", "0.8,0.2"), "invalid_request", "start: 0.8 must be below end 0.2"),
    "a switch without a refiner": (("--refiner-switch", "0.5"), "invalid_request", "name one"),
    "layers of no guidance": (("--pag-layers", "down"), "invalid_request", "give a pag_scale too"),
    "three factors": (("--freeu", "1,1,1"), "invalid_request", "four numbers"),
    "a factor too large": (("--freeu", "1,1,1,9"), "invalid_request", "freeu.s2"),
    "half an interval": (("--guidance-interval", "0.8"), "invalid_request", "two fractions"),
    "side": (("--init", "red.png", "--extend", "up=8"), "invalid_request", "up: no such field"),
    "mask alone": (("--mask", "red.png"), "invalid_request", "mask: needs an init picture"),
    "no such picture": (("--init", "nowhere.png"), "invalid_image", "nowhere.png is not a file"),
    "no picture": (("--init", "bomb.zip"), "invalid_image", "looks like ZIP"),
    "a bomb": (("--init", "bomb.png"), "invalid_image", "at most"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_line_and_exit_code_2(name: str, safelight: Call, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    (tmp_path / "bomb.zip").write_bytes(b"PK\x03\x04" + bytes(1000))
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")
    options, code, message = REFUSED[name]

    for_people = safelight("generate", "a red apple", *options)
    assert (for_people.exit_code, for_people.stdout) == (2, "")
    assert for_people.stderr.startswith("Error: ")
    assert message in for_people.stderr
    assert for_people.stderr.count("\n") == 1

    for_programs = safelight("generate", "a red apple", *options, "--json")
    assert (for_programs.exit_code, for_programs.stdout) == (2, "")
    error = json.loads(for_programs.stderr)["error"]
    assert error["code"] == code
    assert message in error["message"]
    assert not (tmp_path / "pictures").exists()


def test_a_prompt_of_100_000_characters_is_refused_in_one_line(safelight: Call) -> None:
    result = safelight("generate", "-", input="a" * 100_000)
    assert result.exit_code == 2
    assert "prompt: String should have at most 20000 characters" in result.stderr
    assert len(result.stderr) < 300


def test_weights_that_could_carry_code_are_refused(safelight: Call, model_folder: Path) -> None:
    weights = model_folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.write_bytes(b"\x80\x04\x95" + b"cos\nsystem\n" * 100)
    result = safelight("generate", "a red apple", *QUICK, "--model", model_folder, "--json")
    assert (result.exit_code, json.loads(result.stderr)["error"]["code"]) == (1, "unsafe_file")
    assert result.stderr.count("\n") == 1


def test_weights_that_are_cut_short_are_refused(safelight: Call, model_folder: Path) -> None:
    weights = model_folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data[: len(data) // 2])
    result = safelight("generate", "a red apple", *QUICK, "--model", model_folder, "--json")
    assert (result.exit_code, json.loads(result.stderr)["error"]["code"]) == (1, "corrupt_model")


def test_a_folder_that_cannot_be_written_is_found_before_drawing(safelight: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for folder in ("file", "file/below", "/proc/pictures"):
        result = safelight("generate", "a red apple", *QUICK, "--out", folder)
        assert result.exit_code == 1
        assert f"cannot write to {folder}: " in result.stderr
        assert "--out" in result.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, where we may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_found_before_drawing(safelight: Call, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(3 * 2**19))
    result = safelight("generate", "a red apple", *QUICK, "--out", small_disk)
    assert result.exit_code == 1
    assert "its disk is full" in result.stderr


def test_a_disk_that_fills_up_leaves_nothing_half_written(
    safelight: Call, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safelight.cli.out.MIN_FREE_BYTES", 0)
    (small_disk / "filler").write_bytes(bytes(2 * 2**20 - 24 * 2**10))  # room for one small picture, or two
    result = safelight("generate", "a red apple", *QUICK, "-n", 6, "--out", small_disk)
    assert result.exit_code == 1, result.stdout
    assert "No space left" in result.stderr, result.stderr
    kept = [path for path in small_disk.iterdir() if path.name != "filler"]
    assert [path.name for path in kept] == [line.split()[0].rpartition("/")[2] for line in result.stdout.splitlines()]
    for path in kept:
        with Image.open(path) as image:
            image.load()


def prompts_in(result: Result) -> list[str]:
    """What the pictures say they show, in the order of their seeds, then of their prompts."""
    assert result.exit_code == 0, result.stderr
    said = [json.loads(line) for line in result.stdout.splitlines()]
    texts: list[tuple[int, str]] = []
    for one in said:
        with Image.open(one["path"]) as image:
            texts.append((one["seed"], image.text["parameters"].splitlines()[0]))
    return [text for _, text in sorted(texts)]


def test_choices_in_a_prompt_are_made_when_asked(safelight: Call, home: Path) -> None:
    (home / "wildcards").mkdir()
    (home / "wildcards" / "colour.txt").write_text("red\n")
    template = "a __colour__ {apple|pear}"
    both = safelight("generate", template, *QUICK, "--combinatorial", "--json")
    assert prompts_in(both) == ["a red apple", "a red pear"]
    assert [json.loads(line)["seed"] for line in both.stdout.splitlines()] == [7, 7]
    [drawn] = prompts_in(safelight("generate", template, *QUICK, "--wildcards", "--json"))
    assert drawn in ("a red apple", "a red pear")
    assert prompts_in(safelight("generate", template, *QUICK, "--wildcards", "--json")) == [drawn]
    assert prompts_in(safelight("generate", template, *QUICK, "--json")) == [template]


def test_choices_that_cannot_be_are_refused_before_anything_is_loaded(safelight: Call) -> None:
    refused = {
        ("--wildcards", "--combinatorial"): "use only one of them",
        ("--combinatorial", "-n", 501): "2 combinations; at most 1",
        ("--wildcards", "--negative", "__nowhere__"): "no wildcard 'nowhere'",
    }
    for options, said in refused.items():
        result = safelight("generate", "{red|green}", *QUICK, *options)
        assert result.exit_code == 2
        assert said in " ".join(result.stderr.split())


def test_an_embedding_is_drawn_with_and_replayed(safelight: Call, home: Path) -> None:
    width = text_widths(describe(MINI))[0]
    write_a1111(home / "embeddings" / "my-style.safetensors", width=width)
    result = safelight("generate", "an apple, my-style", *QUICK, "--json")
    path = json.loads(result.stdout)["path"]
    again = safelight("replay", path, "--json")
    assert json.loads(again.stdout)["same"], again.stderr
    write_a1111(home / "embeddings" / "my-style.safetensors", width=width, seed=5)
    changed = safelight("replay", path)
    assert changed.exit_code == 2
    assert "the picture would differ" in " ".join(changed.stderr.split())
