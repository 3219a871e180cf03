"""The parts that every route uses, opened with the server and closed with it."""

from dataclasses import dataclass

from fastapi import Request

from safelight.database.connect import Database
from safelight.serving.http.readiness import Readiness
from safelight.serving.jobs.keys import Keys
from safelight.serving.jobs.service import JobService
from safelight.serving.monitoring.metrics import Metrics
from safelight.settings import Settings
from safelight.studio import Studio


@dataclass(slots=True)
class Parts:
    """The parts that routes use, as `app.state.parts`."""

    settings: Settings
    database: Database
    studio: Studio
    job_service: JobService
    keys: Keys
    metrics: Metrics
    readiness: Readiness
    url_secret: bytes
    """The key that signs links to pictures."""


def parts_of(request: Request) -> Parts:
    return request.app.state.parts
