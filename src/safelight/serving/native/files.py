"""/v1/files: download stored pictures, with a key or a signed link that expires; upload pictures for jobs."""

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
from safelight.finish import derive
from safelight.serving.http.auth import CurrentCaller, caller_of
from safelight.serving.http.description import PICTURE
from safelight.serving.http.parts import parts_of
from safelight.serving.jobs.holders import hold, require_access
from safelight.serving.jobs.tables import JobRow
from safelight.studio import Studio

router = APIRouter(prefix="/v1/files", tags=["files"])

LINK_LASTS_S = 3600
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".avif": "image/avif"}


class FileView(BaseModel):
    id: str
    """sha256 of the stored file: the value for `init` and `mask` of a job."""


@router.post("", status_code=201)
async def upload(request: Request, caller: CurrentCaller, file: Annotated[UploadFile, File()]) -> FileView:
    """Store a picture that jobs can use, for example as `init`."""
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
    max_side: Annotated[int | None, Query(ge=64, le=4096, description="Answer a JPEG with no longer side.")] = None,
) -> Response:
    """Download a picture, with a key that may see it or with a signed link from an answer."""
    parts = parts_of(request)
    match = re.fullmatch(r"([0-9a-f]{64})(\.[a-z]{3,4})?", name)
    if match is None:
        raise UnknownAsset(f"no picture {name!r} is stored here; an id is the 64 hex digits a job reported")
    asset_id = match[1]
    if signature is not None:
        if expires is None or not is_signed(signature, parts.url_secret, asset_id, expires):
            raise Forbidden("this link was not signed by this server")
        if expires < time.time():
            raise Forbidden("this link has expired; request the job again to get a new one")
    else:
        caller = await caller_of(request)
        await parts.database.ask(require_access, [asset_id], caller.sees)
    path = await asyncio.to_thread(parts.studio.assets.path_of, asset_id)
    if max_side is not None:
        claim = await parts.studio.claim(asset_id)
        small = await parts.studio.image_pool.work(claim, smaller, asset_id, max_side, parts.studio)
        return Response(small, media_type="image/jpeg")
    data = await asyncio.to_thread(parts.studio.assets.read, asset_id)
    # The name is the digest of the content, which therefore never changes.
    headers = {"cache-control": "private, max-age=31536000, immutable"}
    return Response(data, media_type=TYPES[path.suffix], headers=headers)


def smaller(asset_id: str, max_side: int, studio: Studio) -> bytes:
    """A JPEG of the picture with no side longer than `max_side`, marked as the picture is."""
    image = studio.picture(asset_id)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    actions = ("c2pa.resized.proportional", "c2pa.transcoded")
    return derive(asset_id, image, studio, Encoding(format="jpeg", quality=85), actions=actions)


def link(request: Request, job: JobRow) -> str:
    """A link to the job's picture, valid for an hour without a key; it ends in a file suffix, which clients read."""
    assert job.asset_id
    expires = int(time.time()) + LINK_LASTS_S
    signature = sign(parts_of(request).url_secret, job.asset_id, expires)
    url = request.url_for("download", name=job.asset_id + Encoding(**job.encoding).suffix)
    return str(url.include_query_params(expires=expires, signature=signature))


def is_signed(signature: str, secret: bytes, asset_id: str, expires: int) -> bool:
    """Whether the signature is ours; compared as bytes, since `compare_digest` rejects text that is not ASCII."""
    return hmac.compare_digest(signature.encode(), sign(secret, asset_id, expires).encode())


def sign(secret: bytes, asset_id: str, expires: int) -> str:
    return hmac.new(secret, f"{asset_id}:{expires}".encode(), hashlib.sha256).hexdigest()


def as_base64(image: Image.Image) -> str:
    """Encode as PNG, in base64."""
    file = BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
