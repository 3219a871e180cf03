"""The table of layers in CONTRIBUTING.md is what import-linter enforces, and what the folders are."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "safelight"


def test_imports_point_down() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr


def test_the_table_that_people_read_is_the_one_that_is_enforced() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    enforced = [set(re.findall(r"\w+", layer)) for layer in contracts[0]["layers"]]
    assert drawn_layers() == enforced


def test_every_part_that_exists_is_in_the_table() -> None:
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__", "__main__"} <= set.union(*drawn_layers())


def test_folders_go_one_level_deep() -> None:
    deep = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if len(path.relative_to(PACKAGE).parts) > 2]
    # Alembic wants its files in folders of their own.
    assert [path for path in deep if path.parts[:2] != ("database", "migrations")] == []


def drawn_layers() -> list[set[str]]:
    """Names by layer, the highest first: lines like `10 generate.py  pictures.py`, two blanks before any remark."""
    lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    drawn = (re.match(r" {4,5}\d+ ((?:\w+(?:/|\.py) *)+)", line) for line in lines)
    return [{name.rstrip("/").removesuffix(".py") for name in row[1].split()} for row in drawn if row]
