"""/v1/upscales: a stored picture made larger, as a job like any other."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field

from safelight.assets.encode import Detail, Encoding, Format
from safelight.resolve.resolve import resolve_upscale
from safelight.serving.http.auth import Who
from safelight.serving.http.parts import parts_of
from safelight.serving.jobs.service import SubmitOptions
from safelight.serving.native.jobs import JobView, Key, view
from safelight.spec.fields import Digest, Scale, UpscaleMethod
from safelight.validation import CheckedModel

router = APIRouter(prefix="/v1/upscales", tags=["jobs"])


class UpscaleRequest(CheckedModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"init": "0" * 64, "scale": 2}]})

    init: Digest
    """The picture: the `asset_id` of a job, or what POST /v1/files answered."""
    scale: Scale = 2.0
    method: UpscaleMethod = "lanczos"
    """`lanczos`, or a network: `realesrgan-x4plus`, ... or the name of one of the server's own."""
    output_format: Format = "png"
    output_compression: Annotated[int, Field(ge=1, le=100)] = 90
    metadata: Detail = "full"


@router.post("", status_code=202)
async def create(request: Request, caller: Who, body: UpscaleRequest, idempotency_key: Key = None) -> JobView:
    """Accept a picture to be made larger."""
    parts = parts_of(request)
    submit_options = SubmitOptions(
        encoding=Encoding(format=body.output_format, quality=body.output_compression, metadata=body.metadata),
        idempotency_key=idempotency_key,
    )
    spec = await asyncio.to_thread(resolve_upscale, body.init, body.scale, body.method, parts.studio)
    [job] = await parts.job_service.accept([spec], caller, submit_options)
    return await view(request, job)
