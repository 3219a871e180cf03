"""Light things stay light: each import is made in a fresh process, and `sys.modules` says what came with it."""

import json
import resource
import subprocess
import sys

import pytest

HEAVY = {"accelerate", "diffusers", "matplotlib", "peft", "scipy", "torch", "transformers"}
REPORT = "; import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


@pytest.mark.parametrize("module", ["spec", "errors", "events", "settings"])
def test_a_light_module_loads_nothing_heavy(module: str) -> None:
    assert HEAVY & loaded_by(f"import safelight.{module}") == set()


def test_the_package_itself_loads_nothing_heavy() -> None:
    assert HEAVY & loaded_by("import safelight") == set()


def test_help_loads_nothing_heavy() -> None:
    """It should take less than 0.5 s of CPU: shown by `pytest -rP`, and not asserted, since machines differ."""
    before = cpu_of_children()
    loaded = loaded_by("from safelight.cli.main import app; app(['--help'], standalone_mode=False)")
    print(f"{cpu_of_children() - before:.2f} s of CPU")
    assert HEAVY & loaded == set()


def loaded_by(code: str) -> set[str]:
    found = subprocess.run([sys.executable, "-c", code + REPORT], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return set(json.loads(found.stdout.splitlines()[-1]))


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
