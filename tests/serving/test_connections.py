"""Many clients, slow ones and silent ones, at the real server's real port."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
import pytest
from tests.patience import PATIENCE_S
from tests.serving.server_process import serve

HALF_A_HEADER = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
MAX, PER_ADDRESS = 20, 10
HEADER_TIMEOUT_S = 2.0
JOB = {"prompt": "a red apple", "seed": 7, "steps": 1000, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = {
        "header_timeout_s": HEADER_TIMEOUT_S,
        "max_connections": MAX,
        "max_connections_per_address": PER_ADDRESS,
        "drain_s": 0.1,
    }
    with serve(tmp_path_factory.mktemp("server"), **settings) as (url, _process):
        yield url


def connect(url: str, said: bytes = b"", *, own: str = "127.0.0.1") -> socket.socket:
    address = urlsplit(url)
    connection = socket.create_connection((address.hostname, address.port), PATIENCE_S, source_address=(own, 0))
    connection.sendall(said)
    return connection


def heard(connection: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    data = bytearray()
    try:
        while part := connection.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return bytes(data)


def test_a_missing_header_times_out(url: str) -> None:
    with connect(url, HALF_A_HEADER) as half, connect(url) as silent:
        assert heard(half).startswith(b"HTTP/1.1 408 ")
        assert heard(silent).startswith(b"HTTP/1.1 408 ")


def test_single_bytes_do_not_extend_the_header_timeout(url: str) -> None:
    with connect(url, HALF_A_HEADER) as connection:
        connection.settimeout(HEADER_TIMEOUT_S / 10)
        answer = b""
        for _ in range(round(PATIENCE_S * 10)):
            try:
                answer = connection.recv(65536)
                break
            except TimeoutError:
                connection.sendall(b"x")
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_single_bytes_do_not_extend_it_on_a_kept_alive_connection(url: str) -> None:
    with connect(url, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(HALF_A_HEADER)
        assert b"HTTP/1.1 408 " in heard(connection)


def test_a_header_without_end_is_refused(url: str) -> None:
    with connect(url, HALF_A_HEADER) as connection:
        try:
            for _ in range(1000):
                connection.sendall(b"x" * 1000)
        except OSError:
            return  # closed while it was being sent
        assert heard(connection).startswith(b"HTTP/1.1 431 ")


def test_idle_connections_are_closed_for_new_ones(url: str) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(url, HALF_A_HEADER)) for _ in range(3 * MAX)]
        silent += [stack.enter_context(connect(url, HALF_A_HEADER, own=f"127.0.0.{i}")) for i in range(2, 3 * MAX)]
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert len(silent) > MAX


def test_if_all_connections_are_busy_new_ones_get_503(url: str) -> None:
    job = httpx.post(f"{url}/v1/jobs", json=JOB).raise_for_status().json()
    asks = f"GET /v1/jobs/{job['id']}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with ExitStack() as stack:
        streams = [stack.enter_context(connect(url, asks)) for _ in range(PER_ADDRESS)]
        for stream in streams:
            assert stream.recv(65536).startswith(b"HTTP/1.1 200 ")
        refused = heard(stack.enter_context(connect(url)))
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in refused
        elsewhere = stack.enter_context(connect(url, b"GET /readyz HTTP/1.0\r\n\r\n", own="127.0.0.2"))
        assert heard(elsewhere).startswith(b"HTTP/1.1 200 ")
        # Longer than a header may take: the streams go on until the job ends.
        late = stack.enter_context(connect(url, HALF_A_HEADER, own="127.0.0.2"))
        assert heard(late).startswith(b"HTTP/1.1 408 ")
        cancel = f"POST /v1/jobs/{job['id']}/cancel HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
        assert heard(stack.enter_context(connect(url, cancel, own="127.0.0.2"))).startswith(b"HTTP/1.1 200 ")
        for stream in streams:
            assert b"event: cancelled" in heard_until(stream, b"event: cancelled")


def heard_until(connection: socket.socket, words: bytes) -> bytes:
    data = bytearray()
    while words not in data and (part := connection.recv(65536)):
        data += part
    return bytes(data)
