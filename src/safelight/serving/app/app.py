"""The application: every route, and the parts they share, opened with the server and closed with it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider

from safelight.database.connect import open_database
from safelight.errors import SafelightError
from safelight.serving.a1111 import controlnet as a1111_controlnet
from safelight.serving.a1111 import extras as a1111_extras
from safelight.serving.a1111 import lists as a1111_lists
from safelight.serving.a1111 import routes as a1111
from safelight.serving.a1111.progress import ActiveRequests
from safelight.serving.http import errors, health, metrics_route, viewer_route
from safelight.serving.http.access_log import AccessLog
from safelight.serving.http.address_limit import AddressLimit
from safelight.serving.http.description import describe
from safelight.serving.http.observe import Observer, device_memory, queue_state
from safelight.serving.http.origin import Origin
from safelight.serving.http.parts import Parts
from safelight.serving.http.plain import require_plain
from safelight.serving.http.readiness import Readiness
from safelight.serving.http.request_limits import RequestLimits
from safelight.serving.jobs.keys import Keys
from safelight.serving.jobs.live import JobListeners
from safelight.serving.jobs.loops import Loop
from safelight.serving.jobs.queue import JobQueue
from safelight.serving.jobs.service import JobService
from safelight.serving.jobs.webhooks import Webhooks
from safelight.serving.jobs.worker import JobWorker
from safelight.serving.monitoring.metrics import Metrics
from safelight.serving.monitoring.traces import Traces
from safelight.serving.native import files, job_routes, plugin_routes, upscales, verify_page, verify_routes
from safelight.serving.native.events import JobMessage
from safelight.serving.openai import images as openai
from safelight.serving.openai.bodies import EditMessage, EditRequest, GenerationMessage, VariationRequest
from safelight.settings import Settings
from safelight.studio import Studio, open_studio
from safelight.trust.examiner import Examiner
from safelight.trust.ledger import Ledger, open_ledger
from safelight.version import __version__

RETAIN_EVERY_S = 3600.0


def create_app(
    settings: Settings | None = None,
    *,
    open_studio: Callable[[Settings], Studio] = open_studio,
    tracing: TracerProvider | None = None,
) -> FastAPI:
    """The server as an ASGI application; `safelight serve` runs it under uvicorn."""
    settings = settings or Settings.from_environment()
    metrics, traces = Metrics(version=__version__), Traces(tracing) if tracing else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        try:
            async with open_parts(settings, open_studio, metrics, traces) as parts:
                app.state.parts = parts
                app.state.examiner = Examiner(settings, parts.studio.ledger)
                yield
        except SafelightError as error:
            app.state.startup_error = error
            raise

    app = FastAPI(
        title="safelight",
        version=__version__,
        summary="Stable Diffusion, end to end: pictures, edits and jobs that survive a restart.",
        lifespan=lifespan,
        redirect_slashes=False,
        dependencies=[Depends(require_plain)],
        docs_url=None,  # FastAPI's own pages load scripts from other hosts: `viewer_route` serves ours
        redoc_url=None,
    )
    app.state.active_requests = ActiveRequests()
    app.state.startup_error = None  # the error that kept it from opening
    errors.install(app)
    for part in (health, metrics_route, viewer_route, a1111, a1111_controlnet, a1111_extras, a1111_lists):
        app.include_router(part.router)
    app.state.askers = AddressLimit(settings.trust_detector_per_minute)
    app.include_router(verify_page.router)
    for part in (job_routes, upscales, files, plugin_routes, verify_routes, openai):
        app.include_router(part.router, responses=errors.ERROR_RESPONSES)
    describe(app, [JobMessage, GenerationMessage, EditMessage, EditRequest, VariationRequest])
    app.add_middleware(Origin, settings=settings)
    app.add_middleware(RequestLimits, max_body_bytes=settings.max_body_bytes, body_timeout_s=settings.body_timeout_s)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins.split(), allow_methods=["*"], allow_headers=["*"]
        )
    # Middleware added last runs outermost, so AccessLog sees every response.
    app.add_middleware(AccessLog, metrics=metrics)
    if tracing:
        FastAPIInstrumentor.instrument_app(
            app, tracer_provider=tracing, excluded_urls="healthz,readyz,metrics", exclude_spans=["receive", "send"]
        )
    return app


@asynccontextmanager
async def open_parts(
    settings: Settings, open_studio: Callable[[Settings], Studio], metrics: Metrics, traces: Traces | None
) -> AsyncGenerator[Parts, None]:
    """Open database, engine and worker; on exit, finish the held jobs or put them back in the queue."""
    settings.make_home()
    database = await asyncio.to_thread(open_database, settings.database)
    studio = await asyncio.to_thread(open_studio, settings)
    studio.ledger = open_ledger(settings, database)
    # Remote callers may only use models already in the catalogue: no local paths, no downloads.
    studio.see(replace(studio.models.catalogue, listed_only=not settings.allow_any_model))
    keys = Keys(database)
    observer = Observer(metrics, keys, traces)
    queue, live = JobQueue(database, on_event=observer.on_change), JobListeners()
    metrics.read_at_scrape(queue_state=lambda: queue_state(queue), device_memory=device_memory, weights=studio.memory)
    worker = JobWorker(queue, studio, live, max_jobs=settings.jobs_in_hand, watch=observer.on_event)
    job_service = JobService(
        queue,
        studio,
        worker,
        live,
        max_queued=settings.longest_line,
        private_webhooks=settings.allow_private_webhooks,
    )
    retaining = Loop("erasing what the ledger keeps for a time", partial(retain, studio.ledger), every_s=RETAIN_EVERY_S)
    webhooks = Webhooks(
        database,
        await database.run(keys.secret, "webhooks"),
        private=settings.allow_private_webhooks,
        on_event=metrics.on_webhook,
    )
    worker_task, webhooks_task = asyncio.create_task(worker.run()), asyncio.create_task(webhooks.run())
    retaining_task = asyncio.create_task(retaining.run())
    readiness = Readiness(worker, settings.home)
    try:
        url_secret = await database.run(keys.secret, "urls")
        yield Parts(settings, database, studio, job_service, keys, metrics, readiness, url_secret)
    finally:
        worker.stop(drain_s=settings.drain_s)
        await worker_task
        webhooks_task.cancel()
        retaining_task.cancel()
        await asyncio.wait([webhooks_task, retaining_task])
        await asyncio.to_thread(studio.close)
        database.close()


async def retain(ledger: Ledger | None) -> None:
    """Erase what the ledger keeps of prompts for longer than the operator wants."""
    if ledger:
        await asyncio.to_thread(ledger.retain)
