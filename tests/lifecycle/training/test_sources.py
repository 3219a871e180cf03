"""The same pictures from every kind of location, and the problems found in them."""

import csv
import json
import tarfile
from pathlib import Path

import fsspec
import pytest
from PIL import Image
from tests.lifecycle.training.lessons import picture, write_pictures
from typer.testing import CliRunner

from safelight.cli.main import app
from safelight.errors import InvalidRequest
from safelight.lifecycle.training.check import DataReport, check
from safelight.lifecycle.training.sources import find_examples


def looked(where: str, **wishes: bool) -> DataReport:
    return check(find_examples(where), data=where, min_side=16, **wishes)


def contents(where: str) -> list[tuple[str, str, bytes]]:
    return [(Path(one.key).name, one.caption or "", one.read()) for one in find_examples(where)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "folder", 3)


def test_every_layout_holds_the_same(folder: Path, tmp_path: Path) -> None:
    wanted = contents(str(folder))
    assert [name for name, _, _ in wanted] == ["0.png", "1.png", "2.png"]
    rows = [{"file_name": name, "text": caption} for name, caption, _ in wanted]

    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert contents(str(folder)) == wanted
    (folder / "metadata.jsonl").unlink()

    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", "text"])
        writer.writeheader()
        writer.writerows(rows)
    assert contents(str(folder / "list.csv")) == wanted

    shards = tmp_path / "shards"
    shards.mkdir()
    for number, name in enumerate(["0", "1", "2"]):
        with tarfile.open(shards / f"{number:03}.tar", "w") as archive:
            archive.add(folder / f"{name}.png", f"{name}.png")
            archive.add(folder / f"{name}.txt", f"{name}.txt")
    assert contents(str(shards)) == wanted
    assert contents(str(shards / "001.tar")) == wanted[1:2]

    remote = fsspec.filesystem("memory")
    for path in folder.glob("*"):
        remote.pipe(f"/set/{path.name}", path.read_bytes())
    assert contents("memory://set") == wanted
    remote.rm("/set", recursive=True)


@pytest.mark.needs("pyarrow")
def test_parquet_holds_bytes_or_names(folder: Path, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [
        {"image": {"bytes": path.read_bytes(), "path": path.name}, "text": path.stem}
        for path in sorted(folder.glob("*.png"))
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "set.parquet")
    assert [caption for _, caption, _ in contents(str(tmp_path / "set.parquet"))] == ["0", "1", "2"]


def test_the_digest_is_the_same_wherever_the_data_lies_and_another_for_other_words(
    folder: Path, tmp_path: Path
) -> None:
    before = looked(str(folder)).digest
    assert looked(str(folder.rename(tmp_path / "moved"))).digest == before
    (tmp_path / "moved/0.txt").write_text("other words")
    assert looked(str(tmp_path / "moved")).digest != before


def test_problems_are_found_and_named(folder: Path) -> None:
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:100])
    (folder / "1.txt").unlink()
    Image.new("RGB", (8, 8)).save(folder / "small.png")
    (folder / "small.txt").write_text("small")
    (folder / "silent.png").write_bytes((folder / "2.png").read_bytes())
    (folder / "silent.txt").write_text("")
    picture(2).resize((70, 70)).save(folder / "like.png")
    (folder / "like.txt").write_text("Very very, BIG: a photo the red apple")
    found = {problem.kind: problem.keys for problem in looked(str(folder)).problems}
    assert found == {
        "unreadable picture": ("0.png",),
        "missing caption": ("1.png",),
        "tiny picture": ("small.png",),
        "empty caption": ("silent.png",),
        "same picture": ("2.png", "silent.png"),
        "nearly the same picture": ("2.png", "like.png"),
        "nearly the same caption": ("2.png", "like.png"),
    }


def test_other_pictures_do_not_look_the_same(folder: Path) -> None:
    assert looked(str(folder)).problems == ()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda folder: folder / "nowhere", "there is no such folder"),
        (lambda folder: table(folder, "{}\nnonsense"), "line 1 is not a JSON object"),
        (lambda folder: table(folder, '{"text": "a"}'), "row 1 has no picture; it needs one of file_name"),
        (lambda folder: empty(folder), "has no pictures"),
        (lambda folder: archive(folder), "cannot be read"),
        (lambda _folder: "nosuch://bucket/set", "nosuch"),
    ],
    ids=["missing", "no json", "no column", "empty", "no archive", "no driver"],
)
def test_locations_without_data_are_refused_with_the_reason(make: object, why: str, folder: Path) -> None:
    assert callable(make)
    with pytest.raises(InvalidRequest, match=why):
        find_examples(str(make(folder)))


def table(folder: Path, text: str) -> Path:
    (folder / "rows.jsonl").write_text(text)
    return folder / "rows.jsonl"


def empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    (folder / "empty/notes.md").write_text("nothing")
    return folder / "empty"


def archive(folder: Path) -> Path:
    (folder / "broken.tar").write_bytes(b"no archive")
    return folder / "broken.tar"


def test_the_command_reports_problems_and_exits_with_1(folder: Path, tmp_path: Path) -> None:
    command = ["train", "check", str(folder), "--min-side", "16", "--report", str(tmp_path / "report.json")]
    good = CliRunner().invoke(app, command)
    assert good.exit_code == 0, good.output
    assert "3 of 3 pictures can be trained on" in good.output
    (folder / "1.txt").unlink()
    bad = CliRunner().invoke(app, command)
    assert bad.exit_code == 1
    assert "error: missing caption: 1.png" in bad.output
    assert json.loads((tmp_path / "report.json").read_text())["faults"][0]["keys"] == ["1.png"]
