"""Whether the server is alive, and whether it should be sent work."""

from fastapi import APIRouter, Request

from safelight.errors import SafelightError
from safelight.serving.http.parts import parts_of
from safelight.version import __version__

router = APIRouter(tags=["operations"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok", "version": __version__}


@router.get("/readyz")
async def readyz(request: Request) -> dict[str, str]:
    """The database answers and jobs are being taken; 507 or 503 where not."""
    parts = parts_of(request)
    await parts.database.run(parts.desk.queue.ready)
    if parts.desk.worker.stopping:
        error = SafelightError("the server is shutting down")
        error.status = 503
        raise error
    return {"status": "ready"}
