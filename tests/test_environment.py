"""What is installed is what we say we test with."""

import importlib.util
import os
import re
import tomllib
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.needs import lacking, require

ROOT = Path(__file__).parents[1]
in_ci = pytest.mark.skipif(
    "CI" not in os.environ, reason="says what CI's environment must be; set CI=true to ask it here"
)


def test_torchvision_is_absent() -> None:
    """Several metric packages pull it in, and with it a CUDA build of torch of several GB."""
    assert importlib.util.find_spec("torchvision") is None


@in_ci
def test_torch_is_the_cpu_build() -> None:
    assert version("torch").endswith("+cpu")


@in_ci
def test_what_is_installed_is_what_is_pinned() -> None:
    installed = {name: installed_version(name) for name in pinned()}
    other = {name: found for name, found in installed.items() if found is not None and found != pinned()[name]}
    assert other == {}


@in_ci
def test_all_that_is_installed_is_pinned() -> None:
    """What a dependency brings is as exact as the dependency."""
    installed = {canonicalize_name(found.metadata["Name"]) for found in distributions()}
    assert installed - pinned().keys() <= {"pip", "safelight", "setuptools"}


def test_what_a_test_needs_is_asked_for_in_one_place() -> None:
    """Otherwise CI could pass over a test because something is not installed there."""
    looks = re.compile(r"importorskip|shutil\.which|find_spec\(|skipif\(.*(BINARIES|is None)")
    mine = {"needs.py", "commands.py", Path(__file__).name}
    others = [path for path in (ROOT / "tests").rglob("*.py") if looks.search(path.read_text("utf-8"))]
    assert [path for path in others if path.name not in mine] == []


@pytest.mark.parametrize("name", ["no_such_package", "PostgreSQL"])
def test_what_a_test_lacks_fails_in_ci_and_is_skipped_elsewhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=f"{name} is not installed, and CI skips nothing for that"):
        lacking(name)
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match=f"{name} is not installed"):
        lacking(name)


def test_a_need_is_a_package_or_a_program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    request.node.add_marker(pytest.mark.needs("pytest", "python3"))
    require(request.node)
    request.node.add_marker(pytest.mark.needs("no-such-program"))
    with pytest.raises(pytest.fail.Exception, match="no-such-program"):
        require(request.node)


def test_every_dependency_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    for requirement in map(Requirement, named):
        pin = pinned().get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not in constraints.txt"
        assert pin in requirement.specifier, (
            f"constraints.txt has {requirement.name} {pin}, pyproject.toml {requirement}"
        )


def test_the_version_is_the_same_everywhere() -> None:
    import safelight

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == safelight.__version__
    assert f"## [{safelight.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (re.fullmatch(r"([\w.-]+)==([\w.!+-]+)", line) for line in lines if not line.startswith("#"))
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}


def installed_version(name: str) -> str | None:
    """Without the local label of a build, such as torch's `+cpu`."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


def test_every_slow_test_is_in_a_part_of_the_slow_lane() -> None:
    """A folder with a slow test that no part names would never be run."""
    folders = set(re.findall(r'-m "slow and not gpu" tests/(\w+)', (ROOT / "Makefile").read_text()))
    slow = {path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").rglob("test_*.py") if is_slow(path)}
    assert slow == folders


def is_slow(path: Path) -> bool:
    return "mark.slow" in path.read_text("utf-8") and path.name != Path(__file__).name
