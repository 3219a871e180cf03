"""The messages of /v1/jobs/{job_id}/events, one model per event name, for /openapi.json.

Messages with an `id` are stored: a client that resumes after an earlier id gets them again.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, RootModel


class EventData(BaseModel):
    job_id: str
    at: float
    """Seconds since the epoch."""


class QueuedData(EventData):
    why: str | None = None
    """If the job was requeued: how the previous attempt ended."""


class RunningData(EventData):
    attempt: int


class DoneData(EventData):
    asset_id: str | None
    seconds: float
    kind: str | None = None
    """Only for a training run, like `name`, `reference` and `digest`: what it trained, and its name."""
    name: str | None = None
    reference: str | None = None
    digest: str | None = None


class FailedData(EventData):
    status: int
    code: str
    message: str


class StepData(BaseModel):
    step: int
    total_steps: int


class PreviewData(BaseModel):
    step: int
    b64_png: str
    """The estimate so far, small and in rough colours."""


class JobQueuedEvent(BaseModel):
    id: str
    event: Literal["queued"]
    data: QueuedData


class JobRunningEvent(BaseModel):
    id: str
    event: Literal["running"]
    data: RunningData


class JobDoneEvent(BaseModel):
    id: str
    event: Literal["done"]
    data: DoneData


class JobFailedEvent(BaseModel):
    id: str
    event: Literal["failed"]
    data: FailedData


class JobStoppedEvent(BaseModel):
    id: str
    event: Literal["cancelled", "expired"]
    data: EventData


class JobSteppedEvent(BaseModel):
    event: Literal["step"]
    data: StepData


class JobPreviewedEvent(BaseModel):
    event: Literal["preview"]
    data: PreviewData


class JobMessage(
    RootModel[
        Annotated[
            JobQueuedEvent
            | JobRunningEvent
            | JobDoneEvent
            | JobFailedEvent
            | JobStoppedEvent
            | JobSteppedEvent
            | JobPreviewedEvent,
            Field(discriminator="event"),
        ]
    ]
):
    """One message of the stream; `data` is JSON."""
