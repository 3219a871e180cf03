"""All settings of an operator, read once at the start and passed down.

Each field is also an environment variable: `SAFELIGHT_` and its name in capitals.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from safelight.errors import InvalidRequest, StorageFailed

ORIGINS = "origins"
"""Folder in the home of what is known of pictures that were sent."""
PREFIX = "SAFELIGHT_"


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(default_factory=lambda: user_data_path("safelight", appauthor=False))
    """Folder of pictures, models, keys and caches."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """auto is the fastest for the device: half precision on CUDA, float32 on CPUs without the instructions."""
    budget_megapixels: float | None = Field(default=None, gt=0)
    """Largest network call: rows times picture area. None uses the result of `safelight bench`, or a safe default."""
    model_memory_gb: float | None = Field(default=None, gt=0)
    """Memory for the weights of models and LoRAs; beyond it, the least recently used are dropped. None is 60 % of the
    machine's memory, or 80 % of the graphics card's."""
    max_pixels: int = Field(default=64_000_000, gt=0, le=89_000_000)
    """Largest picture that is opened, in pixels."""
    max_file_bytes: int = Field(default=64 * 2**20, gt=0)
    """Largest picture file that is opened, in bytes."""
    picture_memory_gb: float = Field(default=1.0, gt=0)
    """Memory for pictures being opened, changed or written; a picture that needs more is processed alone."""
    preview_every: int = Field(default=0, ge=0)
    """Steps between previews; 0 is no previews."""
    plugins: bool = True
    """Load installed plugins: packages that add effects, samplers and upscalers. `off` loads none."""
    database_url: str = ""
    """Database of jobs and keys: `sqlite:///FILE` or `postgresql://...`; empty: safelight.db in `home`."""
    jobs_in_hand: int = Field(default=32, gt=0)
    """Jobs that a server process holds at once; its engine chooses among them at every step."""
    longest_line: int = Field(default=1000, gt=0)
    """Most queued jobs; beyond it, the server answers 429."""
    max_output_pixels: int = Field(default=4_194_304, gt=0)
    """Largest picture that the server draws for a caller, in pixels; the command line draws any."""
    max_native_areas: float = Field(default=4.0, gt=0)
    """Largest picture that a model draws at once for a caller of the server, in multiples of its native area: beyond
    it, shapes fall apart and time is lost. Use highres or tiles for larger pictures."""
    openai_models: str = ""
    """Our models by OpenAI's names, separated by spaces: `dall-e-3=mini gpt-image-*=sdxl`. The first match applies;
    names of OpenAI's without a match mean mini."""
    drain_s: float = Field(default=10, ge=0)
    """How long a stopping server lets running jobs finish; the rest go back to the queue."""
    max_body_bytes: int = Field(default=96 * 2**20, gt=0)
    """Longest request body, in bytes."""
    body_timeout_s: float = Field(default=120, gt=0)
    """How long a request body may take to arrive."""
    no_keys: bool = False
    """Accept requests without an API key from this machine."""
    allowed_hosts: str = ""
    """Host names of the server, separated by spaces, besides this machine's own; `*.example.com` is any subdomain. If
    empty and keys are required, any name is accepted."""
    header_timeout_s: float = Field(default=15, gt=0)
    """How long the header of a request may take to arrive."""
    max_connections: int = Field(default=512, gt=0)
    """Most open connections. Beyond it, the oldest idle one is closed; if all are busy, the server answers 503."""
    max_connections_per_address: int = Field(default=256, gt=0)
    """Most open connections from one address; behind a proxy, set it to `max_connections`."""
    cors_origins: str = ""
    """Origins, separated by spaces, whose pages may call the server from a browser."""
    allow_any_model: bool = False
    """Let callers of the server name folders, files and hub ids, besides the models of `safelight models list`."""
    allow_training: bool = False
    """Let administrators start training runs through the server, on any folder or URL that they name."""
    allow_private_webhooks: bool = False
    """Let callers name webhook receivers inside a private network; only if every caller is trusted with it."""
    trust_signature: bool = True
    """Sign every finished picture: a C2PA manifest in the file says what made it."""
    trust_watermark: bool = True
    """Put an invisible watermark into every finished picture."""
    trust_profiles: str = "eu"
    """Whose metadata marks finished pictures carry, separated by spaces. eu: IPTC's digital source type and AI fields;
    cn: the `AIGC` label of GB 45438-2025, which needs `trust_producer`. Empty: none."""
    trust_producer: str = ""
    """Name or code of whoever offers the service, in the `AIGC` label."""
    trust_timestamp: Literal["off", "best-effort", "required"] = "off"
    """Time stamp (RFC 3161) in signatures, which keeps them valid when the certificate has expired. best-effort: sign
    without one if the time stamp authority does not answer; required: the picture fails."""
    trust_timestamp_url: str = ""
    """Time stamp authority, such as `http://timestamp.example.com`."""
    trust_oversight: Literal["auto", "fully_autonomous", "prompt_guided", "human_validated"] = "auto"
    """C2PA's human oversight level. auto: prompt_guided where a person waits for the picture, and otherwise none."""
    trust_training: Literal["unstated", "allowed", "not-allowed"] = "unstated"
    """What signed pictures say of training generative models on them."""
    trust_prompt: bool = False
    """Put the prompt into the signed part too, of pictures with full metadata."""
    trust_signer: str = ""
    """What signs instead of a key on disk, such as a key service: the name of an entry point in `safelight.signers`, or
    `module:function`; it takes the bytes to sign and returns their signature."""
    trust_signer_timeout_s: float = Field(default=10, gt=0)
    """How long a signature, or a time stamp, may take."""

    trust_detector: Literal["public", "keys", "off"] = "public"
    """Who may ask the server what a picture says of itself, at `/verify` and `/v1/verify`. public: everybody; keys: who
    has an API key; off: nobody."""
    trust_detector_per_minute: int = Field(default=30, gt=0)
    """How many pictures one address may ask about in a minute."""
    trust_ledger: bool = True
    """Keep a ledger of finished pictures in the database: digests, marks, and beside them the prompt."""
    trust_ledger_days: float | None = Field(default=None, ge=0)
    """Days for which the ledger keeps prompts and names of keys; 0: it takes none. Empty: for good. Its other rows
    stay."""

    @field_validator("openai_models")
    @classmethod
    def check_pairs(cls, value: str) -> str:
        for pair in value.split():
            theirs, _, ours = pair.partition("=")
            if not (theirs and ours):
                raise ValueError(f"{pair!r} is not of the form THEIR_NAME=OUR_NAME, as in dall-e-3=mini")
        return value

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, **overrides: object) -> Self:
        """Settings from the environment, then from `overrides`; other environment variables are ignored."""
        given = {
            name: environment[PREFIX + name.upper()]
            for name in cls.model_fields
            if PREFIX + name.upper() in environment
        }
        try:
            return cls.model_validate(given | {name: value for name, value in overrides.items() if value is not None})
        except ValidationError as error:
            problems = "; ".join(
                f"{PREFIX}{str(f['loc'][0]).upper()}: {f['msg']} (got {f['input']!r})" for f in error.errors()
            )
            raise InvalidRequest(problems) from None

    def make_home(self) -> None:
        """Create the home folder if it is missing.

        Raises:
            StorageFailed: it cannot be created, or is not writable.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageFailed(
                f"{self.home} cannot be created: {error.strerror}; {PREFIX}HOME chooses another"
            ) from None
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
    def trust(self) -> Path:
        return self.home / "trust"

    @property
    def watermark_keys(self) -> Path:
        return self.trust / "watermark"

    @property
    def origins(self) -> Path:
        return self.home / ORIGINS

    @property
    def cache(self) -> Path:
        return self.home / "cache"
