"""Runs the application under uvicorn until Ctrl-C or SIGTERM."""

import errno
import os
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from safelight.errors import InvalidRequest, SafelightError
from safelight.serving.app.app import create_app
from safelight.serving.app.connections import Connections
from safelight.serving.http.log import LOGGING
from safelight.serving.monitoring.traces import tracing_from
from safelight.settings import Settings
from safelight.version import __version__

BACKLOG = 2048


def run(settings: Settings, *, host: str, port: int, ready: Callable[[int], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; `ready` is called with the port once the server listens on it.

    Raises:
        SafelightError: the address is not available, or a part of the server cannot be opened.
    """
    # Listen first: a second server on a taken port must not open the database, let alone claim jobs.
    with listen(host, port) as listener:
        app = create_app(settings, tracing=tracing_from(os.environ, version=__version__))
        ready(listener.getsockname()[1])
        config = uvicorn.Config(
            without_traceback(app),
            http=Connections(settings).make_protocol,  # pyright: ignore[reportArgumentType]  called like a class
            ws="none",
            log_config=LOGGING,
            access_log=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(settings.drain_s) + 5,
            server_header=False,
        )
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except SystemExit:
            error: SafelightError | None = app.state.startup_error
            if error is None:
                raise
            raise error from None


def without_traceback(app: FastAPI) -> ASGIApp:
    """Suppress uvicorn's traceback of a failed startup; `run` raises its SafelightError instead."""

    async def start(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_filtered(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and app.state.startup_error:
                message["message"] = ""
            await send(message)

        await app(scope, receive, send_filtered if scope["type"] == "lifespan" else send)

    return start


def listen(host: str, port: int) -> socket.socket:
    """
    Raises:
        InvalidRequest: the port is in use, not permitted or not available.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                raise InvalidRequest(f"port {port} is in use: --port PORT chooses another") from None
            case errno.EACCES:
                raise InvalidRequest(
                    f"port {port} needs more rights than this user has: --port 7860 does not"
                ) from None
            case _:
                raise InvalidRequest(f"cannot listen on {host}: {error.strerror}") from None
