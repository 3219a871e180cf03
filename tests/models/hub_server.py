"""A hub of one repository on this machine, speaking as much of the API as a download needs."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "c0ffee" * 6 + "c0ff"


@dataclass
class Hub:
    folder: Path
    name: str = "team/model"
    cut_off: set[str] = field(default_factory=set)
    """Files of which the first answer breaks off half-way."""
    bodies: list[tuple[str, str | None]] = field(default_factory=list)
    """Files sent, and the range asked for."""
    card: dict[str, str] = field(default_factory=dict[str, str])
    """What the model card says at its top."""
    endpoint: str = ""

    @property
    def sent(self) -> list[str]:
        return [name for name, _ in self.bodies]

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            base = f"/api/models/{hub.name}"
            if path in (base, f"{base}/revision/main", f"{base}/revision/{COMMIT}"):
                siblings = [{"rfilename": name} for name in hub.files()]
                about = {"id": hub.name, "modelId": hub.name, "sha": COMMIT, "siblings": siblings}
                self.send_json(about | ({"cardData": hub.card} if hub.card else {}))
            elif path.startswith(f"{base}/tree/{COMMIT}"):
                sizes = {name: (hub.folder / name).stat().st_size for name in hub.files()}
                self.send_json([{"type": "file", "path": n, "size": s, "oid": etag(n)} for n, s in sizes.items()])
            elif path.startswith(f"/{hub.name}/resolve/"):
                self.send_file(path.removeprefix(f"/{hub.name}/resolve/").partition("/")[2], body=body)
            elif path.startswith((base, f"/{hub.name}/")):
                self.refuse("RevisionNotFound")
            else:
                self.refuse("RepoNotFound")

        def send_json(self, value: object) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def send_file(self, name: str, *, body: bool) -> None:
            data = (hub.folder / name).read_bytes()
            asked = self.headers.get("Range")
            first = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("ETag", f'"{etag(name)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - first))
            self.end_headers()
            if body:
                hub.bodies.append((name, asked))
                if name in hub.cut_off:
                    hub.cut_off.remove(name)
                    self.wfile.write(data[first : first + (len(data) - first) // 2])
                    self.wfile.flush()
                    self.connection.close()
                    return
                self.wfile.write(data[first:])

        def refuse(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def etag(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()
