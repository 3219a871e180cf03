"""The program as a whole: light help, versions, and Ctrl-C, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from tests.cli.conftest import Call
from tests.patience import PATIENCE_S

from safelight.version import __version__

SOURCE = Path(__file__).parents[2] / "src"
COMMANDS = "generate replay upscale info serve mcp models samplers doctor bench".split()
HEAVY = {
    "PIL",
    "accelerate",
    "diffusers",
    "numpy",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
}


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(SOURCE)} | more


def test_every_help_is_light() -> None:
    code = f"""
import json, sys
from safelight.cli.main import app
for words in {[[], *([name] for name in COMMANDS), ["models", "show"], ["samplers", "plot"]]}:
    app([*words, "--help"], standalone_mode=False)
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
    found = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert HEAVY & set(json.loads(found.stdout.splitlines()[-1])) == set()


def test_lists_load_no_torch() -> None:
    code = """
import sys
from safelight.cli.main import app
app(["models", "list"], standalone_mode=False)
app(["samplers", "list"], standalone_mode=False)
sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples(command: str, safelight: Call) -> None:
    result = safelight(command, "--help")
    assert result.exit_code == 0
    assert "Examples" in result.stdout
    assert f"safelight {command} " in result.stdout


def test_the_version_is_said(safelight: Call) -> None:
    assert safelight("--version").stdout == f"safelight {__version__}\n"


def test_a_misspelt_command_suggests_the_right_one(safelight: Call) -> None:
    result = safelight("generat", "a red apple")
    assert result.exit_code == 2
    assert "Did you mean 'generate'" in result.stderr


# Pictures are drawn one after the other, so that one is finished while others are not.
ONE_BY_ONE = {"SAFELIGHT_BUDGET_MEGAPIXELS": "0.001"}


def test_control_c_stops_at_the_next_step_and_keeps_what_is_finished(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "safelight", "generate", "a red apple"]
    options = ["-n", "50", "--seed", "1", "--steps", "8", "--out", "kept"]
    # A shell that runs the tests in the background has them ignore SIGINT, and children inherit that.
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [*command, *options],
        cwd=tmp_path,
        env=environment(**ONE_BY_ONE),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeded,
    )
    with process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=PATIENCE_S)
    paths = [line.split()[0] for line in (first + rest).splitlines()]
    assert process.returncode == 130
    assert 1 <= len(paths) < 50
    assert errors == f"Stopped after {len(paths)} of 50 pictures; kept: {', '.join(paths)}\n"
    assert sorted(paths) == sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "kept").iterdir())
