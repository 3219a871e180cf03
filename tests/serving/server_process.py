"""`safelight serve` as a process of its own, on a free port."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from tests.patience import PATIENCE_S


@contextmanager
def serve(home: Path, **settings: object) -> "Iterator[tuple[str, subprocess.Popen[bytes]]]":
    """Its base URL and the process; `settings` by their names."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        f"SAFELIGHT_{name.upper()}": str(value)
        for name, value in ({"no_keys": True} | settings | {"home": home}).items()
    }
    log = home / "log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "safelight", "serve", "--port", str(port)]
        process = subprocess.Popen(command, env=os.environ | environment, stdout=file, stderr=file)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE_S
    try:
        while not ready(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield url, process
    finally:
        process.terminate()
        process.wait(60)


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False
