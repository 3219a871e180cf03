"""Open connections, bounded: how many there are, and how long each may take to say what it wants.

uvicorn speaks HTTP and bounds neither: its keep-alive time begins when an answer ends and is forgotten at the next
byte, so half a header is waited for without end, and httptools keeps headers of any length. Here each of its protocols
is wrapped in one that counts and looks at the clock. What is under way, be it a long wait or a stream of events, takes
as long as it takes; only a client that does not read its answer at all is left, after `STALL_S`.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from safelight.settings import Settings

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 65_536
"""As h11 has it."""
STALL_S = 60.0
"""How long a client may leave its answer unread."""


def refusal(status: str, why: str, *more: str) -> bytes:
    lines = (f"HTTP/1.1 {status}", "content-type: text/plain; charset=utf-8", f"content-length: {len(why)}")
    return "\r\n".join([*lines, *more, "connection: close", "", why]).encode()


FULL = refusal("503 Service Unavailable", "as many connections are open as are taken; try again", "retry-after: 1")
SLOW = refusal("408 Request Timeout", "the header did not arrive in time")
LONG = refusal("431 Request Header Fields Too Large", f"a header has at most {MAX_HEADER_BYTES} bytes")


class UvicornCycle(Protocol):
    """A request and its answer, as uvicorn has them."""

    scope: Mapping[str, Any]
    response_complete: bool


class UvicornProtocol(Protocol):
    """What is looked at of uvicorn's protocols."""

    cycle: UvicornCycle | None
    """The last request whose header is whole."""
    headers: object
    """Of the last request that has begun."""


class Connections:
    """Those that are open, the oldest first."""

    def __init__(self, settings: Settings) -> None:
        self.most = settings.max_connections
        self.most_per_address = settings.max_connections_per_address
        self.header_timeout_s = settings.header_timeout_s
        self.open: dict[Connection, None] = {}
        self.refusing = False

    def speak(self, **made_with: Any) -> asyncio.Protocol:
        """The protocol of a new connection, in place of uvicorn's own."""
        return Connection(self, AutoHTTPProtocol(**made_with))

    def admit(self, new: "Connection") -> bool:
        """Where all places are taken, the oldest connection that asks for nothing makes room."""
        admitted = self.make_room([one for one in self.open if one.address == new.address], self.most_per_address)
        admitted = admitted and self.make_room(list(self.open), self.most)
        if admitted:
            self.open[new] = None
        elif not self.refusing:
            log.warning("connections are refused: %d are open, %s has its share or all are busy", len(self.open), new)
        self.refusing = not admitted
        return admitted

    def make_room(self, held: Sequence["Connection"], most: int) -> bool:
        if len(held) < most:
            return True
        idle = next((one for one in held if not one.busy), None)
        if idle is None:
            return False
        del self.open[idle]
        idle.transport.abort()
        return True


class Connection(asyncio.Protocol):
    """One of them; `inner` is uvicorn's protocol, which speaks."""

    transport: asyncio.Transport

    def __init__(self, connections: Connections, inner: asyncio.Protocol) -> None:
        self.connections = connections
        self.inner = inner
        self.speaker = cast(UvicornProtocol, inner)
        self.address = ""
        self.admitted = False
        self.header_bytes = 0
        self.late: asyncio.TimerHandle | None = None
        """Runs while a header is waited for."""
        self.stalled: asyncio.TimerHandle | None = None
        """Runs while the client reads nothing."""

    def __str__(self) -> str:
        return self.address or "the socket's other end"

    @property
    def busy(self) -> bool:
        """A request is whole and not yet answered, or has its header and is still being sent."""
        cycle = self.speaker.cycle
        return cycle is not None and not cycle.response_complete

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        self.admitted = self.connections.admit(self)
        if not self.admitted:
            self.turn_away(FULL)
            return
        self.inner.connection_made(transport)
        self.wait_for_header()

    def data_received(self, data: bytes) -> None:
        if not self.admitted or self.transport.is_closing():
            return
        self.inner.data_received(data)
        if self.busy:
            self.header_bytes, self.late = 0, stopped(self.late)
            return
        self.wait_for_header()
        cycle = self.speaker.cycle
        if cycle is None or self.speaker.headers is not cycle.scope["headers"]:  # or it is a body, answered early
            self.header_bytes += len(data)
        if self.header_bytes > MAX_HEADER_BYTES:
            self.turn_away(LONG)

    def wait_for_header(self) -> None:
        """From its first byte on, or from the connection's beginning; more bytes give no more time."""
        if self.late is None:
            after_s = self.connections.header_timeout_s
            self.late = asyncio.get_running_loop().call_later(after_s, self.turn_away, SLOW)

    def turn_away(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()

    def eof_received(self) -> bool | None:
        return self.inner.eof_received() if self.admitted else None

    def pause_writing(self) -> None:
        self.stalled = asyncio.get_running_loop().call_later(STALL_S, self.transport.abort)
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.stalled = stopped(self.stalled)
        self.inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.late, self.stalled = stopped(self.late), stopped(self.stalled)
        self.connections.open.pop(self, None)
        if self.admitted:
            self.inner.connection_lost(exc)


def stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
