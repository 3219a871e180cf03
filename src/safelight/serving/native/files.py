"""/v1/files: stored pictures, by a key or by a signed link that expires; and the pictures that jobs start from."""

import asyncio
import base64
import hashlib
import hmac
import re
import time
from io import BytesIO
from typing import Annotated

from fastapi import APIRouter, File, Path, Query, Request, UploadFile
from fastapi.responses import Response
from PIL import Image
from pydantic import BaseModel

from safelight.assets.encode import Encoding
from safelight.errors import Forbidden, UnknownAsset
from safelight.serving.http.auth import Who, caller_of
from safelight.serving.http.description import PICTURE
from safelight.serving.http.parts import parts_of
from safelight.serving.jobs.holders import hold, require_access
from safelight.serving.jobs.tables import JobRow

router = APIRouter(prefix="/v1/files", tags=["files"])

LINK_LASTS_S = 3600
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}


class FileView(BaseModel):
    id: str
    """sha256 of the stored file: what `init` and `mask` of a job name it by."""


@router.post("", status_code=201)
async def upload(request: Request, caller: Who, file: Annotated[UploadFile, File()]) -> FileView:
    """Store a picture that jobs start from."""
    caller.require("draw")
    parts = parts_of(request)
    asset_id = await parts.studio.take(await file.read(), tenant=caller.tenant)
    await parts.database.run(parts.database.write, lambda session: hold(session, [asset_id], caller.tenant))
    return FileView(id=asset_id)


@router.get(
    "/{name}",
    response_class=Response,
    responses={200: {"content": dict.fromkeys(TYPES.values(), PICTURE), "description": "The picture's file."}},
)
async def download(
    request: Request,
    name: Annotated[str, Path(description="The `asset_id` of a job; a suffix such as `.png` may follow.")],
    expires: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    signature: Annotated[str | None, Query()] = None,
) -> Response:
    """A picture: with a key that may see it, or with the link that an answer gave."""
    parts = parts_of(request)
    named = re.fullmatch(r"([0-9a-f]{64})(\.[a-z]{3,4})?", name)
    if named is None:
        raise UnknownAsset(f"no picture {name!r} is stored here; an id is the 64 hex digits a job reported")
    asset_id = named[1]
    if signature is not None:
        if expires is None or not is_signed(signature, parts.url_secret, asset_id, expires):
            raise Forbidden("this link is not one that the server made")
        if expires < time.time():
            raise Forbidden("this link has expired; ask for the job again to get a new one")
    else:
        caller = await caller_of(request)
        await parts.database.ask(require_access, [asset_id], caller.sees)
    path = await asyncio.to_thread(parts.studio.assets.path_of, asset_id)
    data = await asyncio.to_thread(parts.studio.assets.read, asset_id)
    # The name is the content's own digest: it never changes.
    headers = {"cache-control": "private, max-age=31536000, immutable"}
    return Response(data, media_type=TYPES[path.suffix], headers=headers)


def link(request: Request, job: JobRow) -> str:
    """Where anybody may fetch the job's picture for an hour; it ends as a file's name does, which clients look at."""
    assert job.asset_id
    expires = int(time.time()) + LINK_LASTS_S
    signature = sign(parts_of(request).url_secret, job.asset_id, expires)
    url = request.url_for("download", name=job.asset_id + Encoding(**job.encoding).suffix)
    return str(url.include_query_params(expires=expires, signature=signature))


def is_signed(signature: str, secret: bytes, asset_id: str, expires: int) -> bool:
    """Compared as bytes: of text that is not ASCII, `compare_digest` knows nothing."""
    return hmac.compare_digest(signature.encode(), sign(secret, asset_id, expires).encode())


def sign(secret: bytes, asset_id: str, expires: int) -> str:
    return hmac.new(secret, f"{asset_id}:{expires}".encode(), hashlib.sha256).hexdigest()


def as_base64(image: Image.Image) -> str:
    """A PNG."""
    file = BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
