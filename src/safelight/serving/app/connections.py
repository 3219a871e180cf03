"""Limits on open connections: how many there are, and how long each may take to send a request header.

uvicorn limits neither: its keep-alive timer starts when an answer ends and stops at the next byte, so it waits for the
rest of half a header without end, and httptools accepts headers of any length. Here each of its protocols is wrapped in
one that counts connections and keeps timers. A request under way, such as a long wait or a stream of events, may take
any time; only a client that does not read its answer at all is disconnected, after `STALL_S`.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from safelight.settings import Settings

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 65_536
"""The same limit as in h11."""
STALL_S = 60.0
"""How long a client may leave its answer unread."""


def refusal(status: str, reason: str, *headers: str) -> bytes:
    lines = (f"HTTP/1.1 {status}", "content-type: text/plain; charset=utf-8", f"content-length: {len(reason)}")
    return "\r\n".join([*lines, *headers, "connection: close", "", reason]).encode()


FULL = refusal("503 Service Unavailable", "too many connections are open; try again", "retry-after: 1")
SLOW = refusal("408 Request Timeout", "the header did not arrive in time")
LONG = refusal("431 Request Header Fields Too Large", f"a header has at most {MAX_HEADER_BYTES} bytes")


class UvicornCycle(Protocol):
    """The attributes used of uvicorn's request-response cycle."""

    scope: Mapping[str, Any]
    response_complete: bool


class UvicornProtocol(Protocol):
    """The attributes used of uvicorn's protocols."""

    cycle: UvicornCycle | None
    """The last request whose header is complete."""
    headers: object
    """The headers of the last request that has begun."""


class Connections:
    """The open connections, the oldest first."""

    def __init__(self, settings: Settings) -> None:
        self.max_open = settings.max_connections
        self.max_open_per_address = settings.max_connections_per_address
        self.header_timeout_s = settings.header_timeout_s
        self.open: dict[Connection, None] = {}
        self.refusing = False

    def make_protocol(self, **arguments: Any) -> asyncio.Protocol:
        """Make the protocol of a connection, in place of uvicorn's own."""
        return Connection(self, AutoHTTPProtocol(**arguments))

    def admit(self, connection: "Connection") -> bool:
        """Whether a new connection is accepted; if the limit is reached, the oldest idle one is closed for it."""
        admitted = self.free_slot(
            [other for other in self.open if other.address == connection.address], self.max_open_per_address
        )
        admitted = admitted and self.free_slot(list(self.open), self.max_open)
        if admitted:
            self.open[connection] = None
        elif not self.refusing:
            log.warning(
                "connections are refused: %d are open; none of them, or of those from %s, is idle",
                len(self.open),
                connection,
            )
        self.refusing = not admitted
        return admitted

    def free_slot(self, held: Sequence["Connection"], limit: int) -> bool:
        if len(held) < limit:
            return True
        idle = next((connection for connection in held if not connection.busy), None)
        if idle is None:
            return False
        del self.open[idle]
        idle.transport.abort()
        return True


class Connection(asyncio.Protocol):
    """One connection; `inner` is uvicorn's protocol, which handles HTTP."""

    transport: asyncio.Transport

    def __init__(self, connections: Connections, inner: asyncio.Protocol) -> None:
        self.connections = connections
        self.inner = inner
        self.protocol = cast(UvicornProtocol, inner)
        self.address = ""
        self.admitted = False
        self.header_bytes = 0
        self.header_timer: asyncio.TimerHandle | None = None
        """Runs while a header is incomplete."""
        self.stall_timer: asyncio.TimerHandle | None = None
        """Runs while the client does not read."""

    def __str__(self) -> str:
        return self.address or "the socket's other end"

    @property
    def busy(self) -> bool:
        """A request with a complete header is not yet answered."""
        cycle = self.protocol.cycle
        return cycle is not None and not cycle.response_complete

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one, though not a subclass
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        self.admitted = self.connections.admit(self)
        if not self.admitted:
            self.refuse(FULL)
            return
        self.inner.connection_made(transport)
        self.wait_for_header()

    def data_received(self, data: bytes) -> None:
        if not self.admitted or self.transport.is_closing():
            return
        self.inner.data_received(data)
        if self.busy:
            self.header_bytes, self.header_timer = 0, cancel_timer(self.header_timer)
            return
        self.wait_for_header()
        cycle = self.protocol.cycle
        if (
            cycle is None or self.protocol.headers is not cycle.scope["headers"]
        ):  # otherwise it is a body, answered early
            self.header_bytes += len(data)
        if self.header_bytes > MAX_HEADER_BYTES:
            self.refuse(LONG)

    def wait_for_header(self) -> None:
        """Start the timer, at the connection's start or the header's first byte; later bytes do not extend it."""
        if self.header_timer is None:
            after_s = self.connections.header_timeout_s
            self.header_timer = asyncio.get_running_loop().call_later(after_s, self.refuse, SLOW)

    def refuse(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()

    def eof_received(self) -> bool | None:
        return self.inner.eof_received() if self.admitted else None

    def pause_writing(self) -> None:
        self.stall_timer = asyncio.get_running_loop().call_later(STALL_S, self.transport.abort)
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.stall_timer = cancel_timer(self.stall_timer)
        self.inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.header_timer, self.stall_timer = cancel_timer(self.header_timer), cancel_timer(self.stall_timer)
        self.connections.open.pop(self, None)
        if self.admitted:
            self.inner.connection_lost(exc)


def cancel_timer(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
