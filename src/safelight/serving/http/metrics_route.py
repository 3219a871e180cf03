"""/metrics, for Prometheus. It names keys and models: on a server with keys it takes one made with `--admin`."""

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from safelight.serving.http.auth import Who
from safelight.serving.http.parts import parts_of

router = APIRouter(tags=["operations"])


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request, caller: Who) -> Response:
    """What this process counted, and the line of jobs as it is now."""
    caller.require("admin")
    accept, parts = request.headers.get("accept", ""), parts_of(request)
    page, content_type = await parts.database.run(parts.metrics.page, accept)
    return Response(page, headers={"content-type": content_type})
