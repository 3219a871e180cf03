"""/docs, read by a browser that reaches nothing but the server."""

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from tests.serving.conftest import settings_in

from safelight.serving.app.app import create_app
from safelight.serving.http.viewer_route import FOLDER, PARTS

ALONE = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--enable-logging=stderr",
    # Time that passes while nothing is loaded costs nothing.
    "--virtual-time-budget=20000",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def named_in(page: str) -> list[str]:
    """What a browser fetches for it."""
    names: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            names.extend(value for name, value in attrs if name in ("src", "href") and value)

    Reader().feed(page)
    return names


def test_the_page_is_made_of_the_servers_own_files_and_lets_nothing_else_in(server: str) -> None:
    page = httpx.get(f"{server}/docs").raise_for_status()
    policy = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {word for words in policy.values() for word in words.split()} <= {"'none'", "'self'", "data:", "blob:"}
    named = [name for name in named_in(page.text) if not name.startswith("data:")]
    assert len(named) == 3
    for name in named:
        where = urljoin(f"{server}/docs", name)
        assert urlsplit(where).netloc == urlsplit(server).netloc
        assert httpx.get(where).raise_for_status().content
    assert httpx.get(f"{server}/docs/swagger-ui-bundle.js").headers["content-type"].startswith("text/javascript")
    # Of the style sheet, all that is drawn is in it.
    style = httpx.get(f"{server}/docs/swagger-ui.css").text
    assert set(re.findall(r"url\([\\\"']*(.{5})", style)) == {"data:"}


def test_the_licences_come_along(server: str) -> None:
    assert set(PARTS) | {"index.html"} == {path.name for path in FOLDER.iterdir()}
    assert "Apache License" in httpx.get(f"{server}/docs/LICENSE").text
    assert "SmartBear" in httpx.get(f"{server}/docs/NOTICE").text


@pytest.mark.parametrize("path", ["/redoc", "/docs/index.html", "/docs/../viewer_route.py", "/docs/%2e%2e%2fdoor.py"])
def test_other_files_are_not_found(server: str, path: str) -> None:
    assert httpx.get(server + path).status_code == 404


@pytest.mark.needs("chromium")
def test_a_browser_shows_every_route(server: str, tmp_path: Path) -> None:
    command = ["chromium", *ALONE, f"--user-data-dir={tmp_path}", "--dump-dom", f"{server}/docs"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    paths = set(re.findall(r'data-path="([^"]*)"', shown.stdout))
    described = create_app(settings_in(tmp_path)).openapi()["paths"]
    assert paths == set(described), json.dumps(sorted(paths ^ set(described))) + shown.stderr
    assert "Content Security Policy" not in shown.stderr
