"""Whether the server is alive, and whether it should be sent work."""

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
    """A job would be accepted and taken now, which was tried; 503 and why where not. Answers within a second."""
    await parts_of(request).readiness.require()
    return {"status": "ready"}
