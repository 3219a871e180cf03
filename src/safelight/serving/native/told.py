"""What the stream of a job tells: each message of /v1/jobs/{job_id}/events by its name, as /openapi.json has it.

Those with an `id` last: they are told again to who asks for what came after an earlier one.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, RootModel


class Fact(BaseModel):
    job_id: str
    at: float
    """Seconds since the epoch."""


class Waits(Fact):
    why: str | None = None
    """Where it is back in line: what became of the attempt before."""


class Runs(Fact):
    attempt: int


class Ends(Fact):
    asset_id: str | None
    seconds: float
    kind: str | None = None
    """Of a training run, as are `name`, `reference` and `digest`: what was learnt, and under which name."""
    name: str | None = None
    reference: str | None = None
    digest: str | None = None


class Fails(Fact):
    status: int
    code: str
    message: str


class Step(BaseModel):
    step: int
    total_steps: int


class Preview(BaseModel):
    step: int
    b64_png: str
    """The estimate so far, small and in rough colours."""


class JobQueued(BaseModel):
    id: str
    event: Literal["queued"]
    data: Waits


class JobRunning(BaseModel):
    id: str
    event: Literal["running"]
    data: Runs


class JobDone(BaseModel):
    id: str
    event: Literal["done"]
    data: Ends


class JobFailed(BaseModel):
    id: str
    event: Literal["failed"]
    data: Fails


class JobStopped(BaseModel):
    id: str
    event: Literal["cancelled", "expired"]
    data: Fact


class JobStepped(BaseModel):
    event: Literal["step"]
    data: Step


class JobPreviewed(BaseModel):
    event: Literal["preview"]
    data: Preview


class JobMessage(
    RootModel[
        Annotated[
            JobQueued | JobRunning | JobDone | JobFailed | JobStopped | JobStepped | JobPreviewed,
            Field(discriminator="event"),
        ]
    ]
):
    """One message of the stream; `data` is JSON."""
