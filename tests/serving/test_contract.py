"""What /openapi.json promises is what is answered, whatever is asked: no 5xx, and no answer off its schema."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving.conftest import serving, settings_in

from safelight.serving.app.app import create_app

CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"


def test_answers_match_their_schemas(tmp_path: Path) -> None:
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


def parts_of(node: Any) -> Iterator[dict[str, Any]]:
    """Every object of a document."""
    if isinstance(node, dict):
        yield node
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from parts_of(part)


def test_every_reference_resolves(tmp_path: Path) -> None:
    description = create_app(settings_in(tmp_path)).openapi()
    references = {part["$ref"] for part in parts_of(description) if isinstance(part.get("$ref"), str)}
    mapped = {to for part in parts_of(description) for to in part.get("discriminator", {}).get("mapping", {}).values()}
    assert len(references) > 50
    for reference in references | mapped:
        found: Any = description
        for name in reference.removeprefix("#/").split("/"):
            found = found[name]
        assert found, reference
    assert not [part for part in parts_of(description) if "$defs" in part]


def test_every_answer_has_a_schema(tmp_path: Path) -> None:
    description = create_app(settings_in(tmp_path)).openapi()
    told: dict[str, set[str]] = {}
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            good = [answer for status, answer in route["responses"].items() if status.startswith("2")]
            content = {kind: body for answer in good for kind, body in answer.get("content", {}).items()}
            assert content, (method, path)
            assert all(body.get("schema") for body in content.values()), (method, path)
            told[f"{method} {path}"] = set(content)
    assert told["get /v1/jobs/{job_id}/events"] == {"text/event-stream"}
    for route in ("generations", "edits", "variations"):
        assert told[f"post /v1/images/{route}"] == {"application/json", "text/event-stream"}
    assert told["get /v1/files/{name}"] == {"image/png", "image/jpeg", "image/webp", "image/avif"}


@pytest.mark.slow
@pytest.mark.needs("npx")
def test_a_generator_of_clients_accepts_the_description(tmp_path: Path) -> None:
    (tmp_path / "openapi.json").write_text(json.dumps(create_app(settings_in(tmp_path)).openapi()))
    generator = ["npx", "--yes", "openapi-typescript@7.13.0", "openapi.json", "--output", "api.ts"]
    found = subprocess.run(generator, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    types = (tmp_path / "api.ts").read_text()
    assert '"text/event-stream": components["schemas"]["JobMessage"]' in types
