"""The application: every route, and the parts they share, opened with the server and closed with it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from safelight import __version__
from safelight.jobs.database import Database, open_database
from safelight.jobs.desk import Desk
from safelight.jobs.keys import Keys
from safelight.jobs.live import Live
from safelight.jobs.queue import JobQueue
from safelight.jobs.worker import JobWorker
from safelight.server import errors, files, health, jobs
from safelight.server.door import Door
from safelight.settings import Settings
from safelight.studio import Studio, open_studio


@dataclass(slots=True)
class Parts:
    """What the routes stand on; `app.state.parts`."""

    settings: Settings
    database: Database
    studio: Studio
    desk: Desk
    keys: Keys
    url_secret: bytes
    """Signs the links to pictures."""


def create_app(settings: Settings | None = None, *, open_studio: Callable[[Settings], Studio] = open_studio) -> FastAPI:
    """The server as an ASGI application; `safelight serve` runs it under uvicorn."""
    settings = settings or Settings.from_environment()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with opened(settings, open_studio) as parts:
            app.state.parts = parts
            yield

    app = FastAPI(
        title="safelight",
        version=__version__,
        summary="Stable Diffusion, end to end: pictures, edits and jobs that survive a restart.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    errors.install(app)
    for part in (health, jobs, files):
        app.include_router(part.router)
    app.add_middleware(Door, max_body_bytes=settings.max_body_bytes)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins.split(), allow_methods=["*"], allow_headers=["*"]
        )
    return app


@asynccontextmanager
async def opened(settings: Settings, open_studio: Callable[[Settings], Studio]) -> AsyncGenerator[Parts, None]:
    """Database, engine and worker; on the way out jobs in hand are finished or put back in line."""
    settings.home.mkdir(parents=True, exist_ok=True)
    database = await asyncio.to_thread(open_database, settings.database)
    studio = await asyncio.to_thread(open_studio, settings)
    queue, live = JobQueue(database), Live()
    worker = JobWorker(queue, studio, live, most=settings.jobs_in_hand)
    desk = Desk(queue, studio, worker, live, longest_line=settings.longest_line)
    keys = Keys(database)
    working = asyncio.create_task(worker.run())
    try:
        url_secret = await asyncio.to_thread(keys.secret, "urls")
        yield Parts(settings, database, studio, desk, keys, url_secret)
    finally:
        worker.stop(drain_s=settings.drain_s)
        await working
        await asyncio.to_thread(studio.close)
        database.close()
