"""/docs: the description of every route, to read and to try; the browser needs no other server.

`viewer/` holds Swagger UI 5.35.0 from npm (the package swagger-ui-dist, Apache-2.0), its licences, and our page.
"""

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).with_name("viewer")
PARTS = ("start.js", "swagger-ui-bundle.js", "swagger-ui-bundle.js.LICENSE.txt", "swagger-ui.css", "LICENSE", "NOTICE")
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",  # the style sheet's own, and pictures of routes tried on the page
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Scripts and styles are the server's own files; the page loads nothing from elsewhere."""


@router.get("/docs")
async def page() -> FileResponse:
    return FileResponse(FOLDER / "index.html", headers={"content-security-policy": POLICY})


@router.get("/docs/{name}")
async def part(request: Request, name: str) -> FileResponse:
    """Return a file of the page, or a licence."""
    if name not in PARTS:
        raise HTTPException(404, f"there is no such file; the page is {request.url_for('page').path}")
    return FileResponse(FOLDER / name, headers={"cache-control": "private, max-age=3600"})
