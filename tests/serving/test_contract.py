"""What /openapi.json promises is what is answered, whatever is asked: no 5xx, and no answer off its schema."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.serving.conftest import serving, settings_in

from safelight.serving.app.app import create_app

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


def test_every_route_is_described_and_every_body_has_an_example(tmp_path: Path) -> None:
    description = create_app(settings_in(tmp_path)).openapi()
    schemas = description["components"]["schemas"]

    def shows_an_example(schema: Any) -> bool:
        text = json.dumps(schema)
        named = (name for name in schemas if f'"#/components/schemas/{name}"' in text)
        return '"examples"' in text or any(shows_an_example(schemas[name]) for name in named)

    bare: list[str] = []
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            bodies = route.get("requestBody", {}).get("content", {}).items()
            # A file to upload is its own example.
            told = all(kind == "multipart/form-data" or shows_an_example(body) for kind, body in bodies)
            if not told or "422" in route["responses"] or not (route.get("description") or "/sdapi/" in path):
                bare.append(f"{method} {path}")
    assert bare == []
