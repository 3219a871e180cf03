"""Runs the application under uvicorn until Ctrl-C or SIGTERM."""

import os

import uvicorn

from safelight.serving.app.app import create_app
from safelight.serving.app.connections import Connections
from safelight.serving.http.log import LOGGING
from safelight.serving.monitoring.traces import tracing_from
from safelight.settings import Settings
from safelight.version import __version__


def run(settings: Settings, *, host: str, port: int) -> None:
    config = uvicorn.Config(
        create_app(settings, tracing=tracing_from(os.environ, version=__version__)),
        host=host,
        port=port,
        http=Connections(settings).speak,  # pyright: ignore[reportArgumentType]  called as a class is
        ws="none",
        log_config=LOGGING,
        access_log=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(settings.drain_s) + 5,
        server_header=False,
    )
    uvicorn.Server(config).run()
