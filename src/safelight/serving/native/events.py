"""What the stream of a job tells: each message of /v1/jobs/{job_id}/events by its name, as /openapi.json has it.

Those with an `id` last: they are told again to who asks for what came after an earlier one.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, RootModel


class EventData(BaseModel):
    job_id: str
    at: float
    """Seconds since the epoch."""


class QueuedData(EventData):
    why: str | None = None
    """Where it is back in line: what became of the attempt before."""


class RunningData(EventData):
    attempt: int


class DoneData(EventData):
    asset_id: str | None
    seconds: float
    kind: str | None = None
    """Of a training run, as are `name`, `reference` and `digest`: what was learnt, and under which name."""
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
