"""The tables of wings and rooms in CONTRIBUTING.md are what import-linter enforces, and what the folders are."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import grimp
import networkx
import pytest
from grimp import ImportGraph

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "safelight"
WINGS_WITH_ROOMS = ("models", "lifecycle", "serving")
MAX_FILES = 20
"""Of one room: `lifecycle/training` and `cli` list like things, one file each, and may be longer."""


@pytest.fixture(scope="module")
def imports() -> ImportGraph:
    """Every import, those for type checkers only and those inside functions too."""
    return grimp.build_graph("safelight", exclude_type_checking_imports=False, cache_dir=None)


def test_imports_point_down() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr


def test_the_tables_that_people_read_are_those_that_are_enforced() -> None:
    assert drawn_wings() == enforced("safelight")
    for wing in WINGS_WITH_ROOMS:
        assert drawn_rooms(wing) == enforced(f"safelight.{wing}"), wing


def test_every_part_that_exists_is_in_the_tables() -> None:
    assert parts_in(PACKAGE) - {"__main__"} == set.union(*drawn_wings())
    for wing in WINGS_WITH_ROOMS:
        assert parts_in(PACKAGE / wing) == set.union(*drawn_rooms(wing)), wing


def test_folders_go_two_levels_deep_and_no_further() -> None:
    deep = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if len(path.relative_to(PACKAGE).parts) > 3]
    # Alembic wants its files in folders of their own.
    assert [path for path in deep if path.parts[:2] != ("database", "migrations")] == []
    # A wing has files or rooms, not both.
    mixed = [
        wing for wing in WINGS_WITH_ROOMS if any(path.stem != "__init__" for path in (PACKAGE / wing).glob("*.py"))
    ]
    assert mixed == []


def test_a_room_can_be_taken_in_at_a_glance() -> None:
    sizes = {
        str(folder.relative_to(PACKAGE)): sum(path.stem != "__init__" for path in folder.glob("*.py"))
        for folder in PACKAGE.glob("*/*/")
    }
    large = {room: size for room, size in sizes.items() if size > MAX_FILES}
    assert set(large) <= {"lifecycle/training"}
    assert max(size for room, size in sizes.items() if room.startswith("models/")) <= 19


def test_no_files_import_each_other_in_a_circle(imports: ImportGraph) -> None:
    assert circles({module: imports.find_modules_directly_imported_by(module) for module in imports.modules}) == []


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Groups of files in which each leads to all others."""
    pairs = [(one, other) for one, targets in arrows.items() for other in targets]
    return [group for group in networkx.strongly_connected_components(networkx.DiGraph(pairs)) if len(group) > 1]


def parts_in(folder: Path) -> set[str]:
    parts = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    return parts - {"__init__"}


def enforced(container: str) -> list[set[str]]:
    contracts: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    [layers] = [contract["layers"] for contract in contracts if contract.get("containers") == [container]]
    return [set(re.findall(r"\w+", layer)) for layer in layers]


def drawn_wings() -> list[set[str]]:
    """Names by layer, the highest first: lines like `9 api.py`, two blanks before any remark."""
    lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    drawn = (re.match(r" {4,5}\d+ ((?:\w+(?:/|\.py) *)+)", line) for line in lines)
    return [{name.rstrip("/").removesuffix(".py") for name in row[1].split()} for row in drawn if row]


def drawn_rooms(wing: str) -> list[set[str]]:
    """From the line `models  backends > adapters > networks, registry`."""
    [row] = re.findall(rf"^ {{4}}{wing} +(\w.*)$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    return [set(layer.replace(",", " ").split()) for layer in row.split(" > ")]
