"""Health checks: whether the server is alive, and whether it should be sent work."""

from fastapi import APIRouter, Request

from safelight.serving.http.parts import parts_of
from safelight.version import __version__

router = APIRouter(tags=["operations"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok", "version": __version__}


@router.get("/readyz")
async def readyz(request: Request) -> dict[str, str]:
    """Whether a job would be accepted and run now, tested with a write; 503 with the reason if not. Answers within
    a second."""
    await parts_of(request).readiness.require()
    return {"status": "ready"}
