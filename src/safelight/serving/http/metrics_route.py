"""/metrics, for Prometheus. It names keys and models, so a server with keys requires one made with `--admin`."""

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from safelight.serving.http.auth import CurrentCaller
from safelight.serving.http.parts import parts_of

router = APIRouter(tags=["operations"])


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request, caller: CurrentCaller) -> Response:
    """The counts of this process, and the current state of the job queue."""
    caller.require("admin")
    accept, parts = request.headers.get("accept", ""), parts_of(request)
    page, content_type = await parts.database.run(parts.metrics.page, accept)
    return Response(page, headers={"content-type": content_type})
