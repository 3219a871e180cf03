"""Everything an operator may set, read once at the start and handed down.

Each field is also an environment variable: `SAFELIGHT_` and its name in capitals.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from safelight.errors import InvalidRequest, StorageFailed

PREFIX = "SAFELIGHT_"


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(default_factory=lambda: user_data_path("safelight", appauthor=False))
    """Where pictures, models and caches are kept."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """auto takes what the device computes fast: half precision on CUDA, float32 on CPUs without the instructions."""
    budget_megapixels: float | None = Field(default=None, gt=0)
    """Largest network call: rows times picture area. None takes what `safelight bench` measured, or a safe guess."""
    model_memory_gb: float | None = Field(default=None, gt=0)
    """For the weights of models and LoRAs: beyond it, what was not used for longest leaves memory. None takes 60 % of
    the machine's memory, or 80 % of the graphics card's."""
    max_pixels: int = Field(default=64_000_000, gt=0, le=89_000_000)
    """Largest picture that is opened, in pixels, whatever its file size."""
    max_file_bytes: int = Field(default=64 * 2**20, gt=0)
    """Largest picture file that is opened."""
    picture_memory_gb: float = Field(default=1.0, gt=0)
    """For pictures that are being opened, changed or written; one that takes more than this is worked on alone."""
    preview_every: int = Field(default=0, ge=0)
    """Steps between previews; 0 makes none."""
    database_url: str = ""
    """Where jobs and keys are kept: `sqlite:///FILE` or `postgresql://...`; empty: safelight.db in `home`."""
    jobs_in_hand: int = Field(default=32, gt=0)
    """Jobs that a server process takes from the line at once; its engine chooses among them at every step."""
    longest_line: int = Field(default=1000, gt=0)
    """Queued jobs beyond which the server answers 429."""
    max_output_pixels: int = Field(default=4_194_304, gt=0)
    """Largest picture that the server draws for a caller; the command line draws any."""
    max_native_areas: float = Field(default=4.0, gt=0)
    """What a model is given to draw at once for a caller of the server, in areas of its own size: beyond it shapes fall
    apart, and time is lost. Larger pictures are drawn by highres or in tiles."""
    openai_models: str = ""
    """What OpenAI's names of models stand for here, between spaces: `dall-e-3=mini gpt-image-*=sdxl`. The first that
    fits counts; of its names that are not in it, all stand for mini."""
    drain_s: float = Field(default=10, ge=0)
    """How long a server that is stopped lets jobs under way end; the rest go back in line."""
    max_body_bytes: int = Field(default=96 * 2**20, gt=0)
    """Longest request body."""
    body_timeout_s: float = Field(default=120, gt=0)
    """How long a request body may take to arrive."""
    no_keys: bool = False
    """Take everybody on this machine who has no API key."""
    allowed_hosts: str = ""
    """Names, between spaces, that the server goes by beside those of this machine's own; `*.example.com` is any below.
    Where keys are needed, and none is said here, any name will do."""
    header_timeout_s: float = Field(default=15, gt=0)
    """How long the header of a request may take to arrive."""
    max_connections: int = Field(default=512, gt=0)
    """Open at once. Beyond it, the oldest that asks for nothing makes room; where all are busy, 503."""
    max_connections_per_address: int = Field(default=256, gt=0)
    """Of these, from one address; behind a proxy, which has one for all, as many as `max_connections`."""
    cors_origins: str = ""
    """Origins, between spaces, whose pages may call the server from a browser."""
    allow_any_model: bool = False
    """Let callers of the server name folders, files and hub ids, beside what `safelight models list` shows."""
    allow_training: bool = False
    """Let administrators start training runs through the server, on any folder or URL that they name."""
    allow_private_webhooks: bool = False
    """Let callers name webhook receivers inside a private network; only where every caller is trusted with it."""

    @field_validator("openai_models")
    @classmethod
    def in_pairs(cls, said: str) -> str:
        for pair in said.split():
            theirs, _, ours = pair.partition("=")
            if not (theirs and ours):
                raise ValueError(f"{pair!r} is not of the form THEIR_NAME=OUR_NAME, as in dall-e-3=mini")
        return said

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, **overrides: object) -> Self:
        """Environment first, then what the caller overrides; a variable that is not a setting is left alone."""
        given = {
            name: environment[PREFIX + name.upper()]
            for name in cls.model_fields
            if PREFIX + name.upper() in environment
        }
        try:
            return cls.model_validate(given | {name: value for name, value in overrides.items() if value is not None})
        except ValidationError as error:
            faults = "; ".join(
                f"{PREFIX}{str(f['loc'][0]).upper()}: {f['msg']} (got {f['input']!r})" for f in error.errors()
            )
            raise InvalidRequest(faults) from None

    def make_home(self) -> None:
        """
        Raises:
            StorageFailed: it is not there and cannot be made, or nothing can be written there.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageFailed(f"{self.home} cannot be made: {error.strerror}; {PREFIX}HOME chooses another") from None
        if not os.access(self.home, os.W_OK | os.X_OK):
            raise StorageFailed(f"{self.home} cannot be written by this user; {PREFIX}HOME chooses another")

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'safelight.db'}"

    @property
    def blobs(self) -> Path:
        return self.home / "blobs"

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def embeddings(self) -> Path:
        return self.home / "embeddings"

    @property
    def wildcards(self) -> Path:
        return self.home / "wildcards"

    @property
    def loras(self) -> Path:
        return self.home / "loras"

    @property
    def cache(self) -> Path:
        return self.home / "cache"
