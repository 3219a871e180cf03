"""A web server of one file on this machine, that breaks off, forgets, redirects and lies as it is told."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.patience import PATIENCE_S


@dataclass
class Site:
    data: bytes = b""
    etag: str = '"one"'
    cut_after: list[int] = field(default_factory=list[int])
    """Of the next answers, how many bytes are sent before the connection breaks."""
    status: list[int] = field(default_factory=list[int])
    """Of the next answers, instead of the file."""
    declared: int | None = None
    """A length that is not the true one."""
    ranges: list[str | None] = field(default_factory=list[str | None])
    """What was asked for, answer by answer."""
    redirect: str = ""
    url: str = ""
    stall: threading.Event | None = None
    """Half-way, wait for it."""


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            site.ranges.append(asked)
            if site.redirect or site.status:
                self.send_response(302 if site.redirect else site.status.pop(0))
                self.send_header("Location", site.redirect)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            whole = len(site.data)
            resumes = asked is not None and self.headers.get("If-Range") == site.etag
            first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and resumes else 0
            self.send_response(206 if resumes else 200)
            self.send_header("ETag", site.etag)
            if resumes:
                self.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
            self.send_header("Content-Length", str((site.declared or whole) - first))
            self.end_headers()
            rest = site.data[first:]
            cut = site.cut_after.pop(0) if site.cut_after else None
            if site.stall:
                self.wfile.write(rest[: len(rest) // 2])
                self.wfile.flush()
                site.stall.wait(PATIENCE_S)
                rest = rest[len(rest) // 2 :]
            self.wfile.write(rest[:cut])
            self.wfile.flush()
            if cut is not None or site.declared:
                self.close_connection = True
                self.connection.close()

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except (OSError, ValueError):
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}/files/ink%20v2.safetensors"
    try:
        yield site
    finally:
        if site.stall:
            site.stall.set()
        server.shutdown()
        server.server_close()
        thread.join()
