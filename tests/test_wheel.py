"""What is published holds all that it needs: built, installed elsewhere, and asked for a picture."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a wheel and an sdist."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    return folder


def test_wheel_and_sdist_hold_every_file_of_the_package(published: Path) -> None:
    """Weights, vocabularies, the report's page and the migrations' template among them."""
    [wheel], [sdist] = published.glob("*.whl"), published.glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files", "src/safelight"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {name.removeprefix("src/") for name in tracked} <= names
    assert set(tracked) <= sources


def test_a_wheel_that_is_installed_elsewhere_draws(published: Path, tmp_path: Path) -> None:
    [wheel] = published.glob("*.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)  # as pip does with a wheel of pure Python
    script = (
        "import safelight; [apple] = safelight.generate('a red apple', steps=2, seed=7); "
        "print(safelight.__file__, apple.image.size)"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed), "SAFELIGHT_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(installed / "safelight" / "__init__.py"), "(128,", "128)"]
