"""What /openapi.json promises is what is answered, whatever is asked: no 5xx, and no answer off its schema."""

import subprocess
import sys
from pathlib import Path

from tests.server.conftest import serving, settings_in

CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"


def test_answers_keep_their_promise(tmp_path: Path) -> None:
    # Every picture is refused as too large: what is explored is the answers, not the drawing.
    settings = settings_in(tmp_path).model_copy(update={"max_output_pixels": 4000})
    with serving(settings) as url:
        explore(url, tmp_path)


def explore(server: str, folder: Path) -> None:
    schemathesis = Path(sys.executable).with_name("schemathesis")
    command = [str(schemathesis), "run", f"{server}/openapi.json", "--checks", CHECKS, "--max-examples", "8"]
    command += ["--phases", "examples,coverage,fuzzing", "--mode", "all", "--seed", "1", "--no-color"]
    # Streams end when their job does, and waiting is for jobs that will end.
    command += ["--exclude-path-regex", "/(events|wait)$", "--request-timeout", "60"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-8000:] + found.stderr[-2000:]
