"""A webhook receiver that answers as a test sets it, and records the requests."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.patience import PATIENCE_S


@dataclass
class Receiver:
    url: str = ""
    statuses: list[int] = field(default_factory=list)
    """Status codes of the next answers; 200 after the last."""
    location: str = ""
    slow: bool = False
    """Whether it accepts requests but does not answer until it is closed."""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    """Headers and body of each request."""
    closing: threading.Event = field(default_factory=threading.Event)


@contextmanager
def receiving() -> Generator[Receiver, None, None]:
    told = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            told.got.append((headers, self.rfile.read(int(headers["content-length"]))))
            if told.slow:
                told.closing.wait(PATIENCE_S)
            self.send_response(told.statuses.pop(0) if told.statuses else 200)
            if told.location:
                self.send_header("location", told.location)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}/hook"
    try:
        yield told
    finally:
        told.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
