"""/v1/verify: what a picture says of itself. Nothing that is sent is kept."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, File, Request, UploadFile
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from safelight.serving.http.auth import caller_of
from safelight.serving.http.parts import parts_of
from safelight.trust.examination import Examination
from safelight.trust.examiner import Examiner

router = APIRouter(prefix="/v1/verify", tags=["verify"])


class LayerView(BaseModel):
    layer: str
    technique: str
    found: bool
    state: str
    """Of the signature: valid, untrusted, invalid or absent; of the watermark: found, differs (it was made for another
    picture), absent or not read; of other layers: found or absent."""
    says: dict[str, Any]
    reasons: list[str]
    """What is wrong, in C2PA's codes."""


class FileFacts(BaseModel):
    sha256: str
    type: str


class Detector(BaseModel):
    name: str
    version: str


class VerifyAnswer(BaseModel):
    file: FileFacts
    conclusion: str
    """marked: a layer says what the picture is, and none is broken; broken: a signature does not hold, or the
    watermark is of another picture; unmarked."""
    generated: str
    """yes, partly or not said: whether a generative model made the picture, by what its marks say."""
    layers: list[LayerView]
    missing: list[str]
    detector: Detector
    time: str
    report: str
    """All of it, signed: a compact JWS with the certificate in its header (`x5c`)."""


@router.post("")
async def verify(request: Request, file: Annotated[UploadFile, File(description="A picture.")]) -> VerifyAnswer:
    """Read the marks of a picture: signature (C2PA), metadata (IPTC, AIGC), watermark and ledger."""
    found, report = await examined(request, file)
    return VerifyAnswer.model_validate({**found.to_json(), "report": report})


async def examined(request: Request, file: UploadFile) -> tuple[Examination, str]:
    """What the picture says, and the signed report."""
    parts = parts_of(request)
    match parts.settings.trust_detector:
        case "off":
            raise HTTPException(404, "this server answers no questions about pictures")
        case "keys":
            await caller_of(request)
        case "public":
            pass
    request.app.state.askers.take(request)
    data = await file.read()
    examiner: Examiner = request.app.state.examiner
    claim = await parts.studio.claim(data)
    found = await parts.studio.image_pool.work(claim, examiner.examine, data)
    return found, await asyncio.to_thread(examiner.signed, [found])
