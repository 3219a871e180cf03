"""The bodies and answers of OpenAI's Images API, and their translation to drafts.

The bodies are those of the `openai` SDK of 2026; fields in its `extra_body` are fields of our own drafts.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, RootModel, WithJsonSchema, create_model
from pydantic.fields import FieldInfo
from starlette.datastructures import UploadFile as SentFile

from safelight.assets.encode import Encoding
from safelight.errors import SafelightError, UnsupportedOption
from safelight.prompts.expand import Expand
from safelight.serving.http.errors import ErrorBody
from safelight.spec import Draft, parse_draft
from safelight.spec.fields import MAX_STEPS, Prompt
from safelight.spec.interface import is_scalar
from safelight.validation import CheckedModel, errors_in

if TYPE_CHECKING:
    from safelight.spec.fields import Strength

THEIR_MODELS = re.compile(r"(gpt-image|dall-e|chatgpt-image).*")
"""Names built into clients; unless the operator maps them, they mean the server's own model."""
DEFAULT_NAME = "dall-e-2"
"""OpenAI's default for a request without a model."""
DEFAULT_MODEL = "mini"
QUALITIES = {"low": 0.5, "medium": 0.75, "standard": 1.0, "auto": 1.0, "high": 1.5, "hd": 1.5}
"""Steps, as a multiple of the model's default."""
FIELD_NAMES = {"width": "size", "height": "size", "highres.scale": "size"}
"""OpenAI's names by the fields of our drafts, if they differ."""
PLACEHOLDER_ID = "0" * 64
"""Stands for a picture that is validated later."""
FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def parse_json(value: Any) -> Any:
    """Form fields are strings, and structured values are sent as JSON: decode them."""
    if isinstance(value, str):
        with suppress(ValueError):
            return json.loads(value)
    return value


FromJson = BeforeValidator(parse_json)


NO_EXTRAS = {
    *("prompt", "model", "width", "height", "init", "mask"),  # given in their words, or as files
    *("guidance_interval", "vae", "text_encoder", "highres", "fit", "scale", "tiles", "mask_blur", "mask_invert"),
    *("only_masked", "padding", "soft_mask", "replace_background", "extend"),
}
"""Fields of a draft that are no extra fields; a new field of a draft is one unless it is listed here."""


class ExtraFields(CheckedModel):
    """What only safelight knows; the SDK sends it through `extra_body`, and a form as JSON where it has parts."""

    model_config = ConfigDict(extra="ignore")


def extras_of(draft: type[Draft]) -> type[ExtraFields]:
    """A body of the draft's fields, with their bounds, defaults and descriptions."""
    fields: dict[str, Any] = {
        name: (as_sent(field), Field(field.default, description=field.description))
        for name, field in draft.model_fields.items()
        if name not in NO_EXTRAS
    }
    return create_model("Extras", __base__=ExtraFields, **fields)


def as_sent(field: FieldInfo) -> Any:
    """Its type; lists and objects may be JSON in a form."""
    kind = field.rebuild_annotation()
    if is_scalar(field):
        return kind
    # An optional list that has a default may be null, too.
    return Annotated[kind | None if field.default else kind, FromJson]


Extras = extras_of(Draft)


class ImageRequest(Extras):
    """The fields that generations and edits share."""

    prompt: Prompt
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: str | None = None
    """`WIDTHxHEIGHT` in pixels, multiples of 8, or `auto`."""
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = None
    expand: Expand | None = None
    """Ours: expand choices in the prompt; `combinatorial` answers with `n` pictures of each combination."""
    response_format: Literal["url", "b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    background: Literal["auto", "transparent", "opaque"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    user: str | None = None

    @property
    def placeholder_images(self) -> dict[str, Any]:
        """Placeholders for the draft fields whose pictures are files of the form."""
        return {}

    def clashes(self) -> Iterator[SafelightError]:
        if self.background == "transparent":
            yield UnsupportedOption("background", "pictures have no transparency here; use opaque or auto")
        try:
            size = self.sides
        except UnsupportedOption as error:
            yield error
            size = {}
        fields = {"model": self.model or DEFAULT_MODEL} | self.fields(1)
        yield from errors_in(Draft, fields | size | self.placeholder_images, FIELD_NAMES)

    def draft(self, default_steps: int, *, model: str, **given: Any) -> Draft:
        """The draft of the first picture; the others differ in their seeds."""
        return parse_draft({"model": model} | self.fields(default_steps) | self.sides | given)

    def fields(self, default_steps: int) -> dict[str, Any]:
        """The fields of a `spec.Draft`, except model and size."""
        fields: dict[str, Any] = self.model_dump(include=set(Extras.model_fields), exclude_none=True)
        if "steps" not in fields and self.quality not in (None, "auto", "standard"):
            fields["steps"] = min(max(1, round(default_steps * QUALITIES[self.quality])), MAX_STEPS)
        if not self.placeholder_images:
            fields.pop("strength", None)
        return {"prompt": self.prompt} | fields

    @property
    def sides(self) -> dict[str, int]:
        """
        Raises:
            UnsupportedOption: the size is invalid.
        """
        return {} if self.size in (None, "auto") else sides(self.size)

    def encoding(self) -> Encoding:
        quality = 100 if self.output_compression is None else max(1, self.output_compression)
        return Encoding(format=self.output_format or "png", quality=quality)

    @property
    def as_url(self) -> bool:
        """Whether to answer with links: OpenAI's older models do by default, the newer ones never do."""
        old = (self.model or "").startswith("dall-e")
        return self.response_format == "url" or (self.response_format is None and old)


class GenerationRequest(ImageRequest):
    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={"examples": [{"prompt": "a red apple", "size": "128x128", "n": 2, "seed": 7}]},
    )
    style: Literal["vivid", "natural"] | None = None
    moderation: Literal["auto", "low"] | None = None


def file_of(value: Any) -> SentFile:
    if not isinstance(value, SentFile):
        raise ValueError("a picture is required, as a file of the multipart form")  # noqa: TRY004  as pydantic requires
    return value


PictureFile = Annotated[UploadFile, BeforeValidator(file_of), WithJsonSchema({"type": "string", "format": "binary"})]
PICTURE = "The picture to edit: PNG, JPEG, WebP or GIF. `image[]` may name several; only the first is used."
MASK = "A PNG of the same size; transparent areas of the picture are redrawn."


class VariationRequest(ImageRequest):
    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [{"n": 2, "size": "256x256"}]})
    prompt: Prompt = ""
    image: Annotated[PictureFile, Field(description=PICTURE, exclude=True)]
    if TYPE_CHECKING:
        strength: Strength | None  # of Extras
    input_fidelity: Literal["high", "low"] | None = None
    """`high` stays closer to the picture, unless `strength` is given."""

    @property
    def placeholder_images(self) -> dict[str, Any]:
        return {"init": PLACEHOLDER_ID}


class EditRequest(VariationRequest):
    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [{"prompt": "an orange", "size": "auto"}]})
    prompt: Prompt  # pyright: ignore[reportGeneralTypeIssues]
    mask: Annotated[PictureFile | None, Field(description=MASK, exclude=True)] = None


class ImageData(BaseModel):
    b64_json: str | None = None
    url: str | None = None
    seed: int
    """Ours: the same seed gives the same picture."""


class InputDetails(BaseModel):
    text_tokens: int
    image_tokens: int = 0


class Usage(BaseModel):
    """OpenAI's tokens have no meaning here: words of the prompt are counted instead, and output pictures are not."""

    input_tokens: int
    output_tokens: int = 0
    total_tokens: int
    input_tokens_details: InputDetails


class ImagesAnswer(BaseModel):
    created: int
    data: list[ImageData]
    background: str = "opaque"
    output_format: str
    quality: str
    size: str
    usage: Usage


class PartialEvent(BaseModel):
    """A partial or finished picture."""

    type: str
    b64_json: str
    created_at: int
    size: str
    quality: str
    background: str
    output_format: str


class PartialImage(PartialEvent):
    partial_image_index: int


class CompletedImage(PartialEvent):
    usage: Usage


class GenerationPartial(BaseModel):
    event: Literal["image_generation.partial_image"]
    data: PartialImage


class GenerationCompleted(BaseModel):
    event: Literal["image_generation.completed"]
    data: CompletedImage


class EditPartial(BaseModel):
    event: Literal["image_edit.partial_image"]
    data: PartialImage


class EditCompleted(BaseModel):
    event: Literal["image_edit.completed"]
    data: CompletedImage


class StreamFailed(BaseModel):
    event: Literal["error"]
    data: ErrorBody


class GenerationMessage(
    RootModel[Annotated[GenerationPartial | GenerationCompleted | StreamFailed, Field(discriminator="event")]]
):
    """One message of the stream; `data` is JSON."""


class EditMessage(RootModel[Annotated[EditPartial | EditCompleted | StreamFailed, Field(discriminator="event")]]):
    """One message of the stream; `data` is JSON."""


class ModelView(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "safelight"
    root: str | None = None
    """Ours: the model that this name stands for."""
    sizes: list[str] | None = None
    """Ours: sizes that it draws well; larger pictures start at one and are upscaled. Not set in the list of models."""


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelView]


def parse_model_names(table: str) -> list[tuple[str, str]]:
    """Parse `Settings.openai_models`: pairs of OpenAI's name, with * as a wildcard, and ours."""
    return [(theirs, ours) for theirs, _, ours in (pair.partition("=") for pair in table.split())]


def model_of(name: str | None, table: str) -> str:
    """Our model for a name of OpenAI's."""
    name = name or DEFAULT_NAME
    ours = next((ours for theirs, ours in parse_model_names(table) if fnmatchcase(name, theirs)), name)
    return DEFAULT_MODEL if THEIR_MODELS.fullmatch(ours) else ours


def final_sides(spec: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height of a spec's picture in pixels, after its second pass if it has one."""
    scale = (spec.get("highres") or {}).get("scale", 1.0)
    width, height = (round(spec[side] * scale / 8) * 8 for side in ("width", "height"))
    return width, height


def sides(size: str | None) -> dict[str, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size or "")
    if match is None:
        raise UnsupportedOption("size", f"{size!r} is neither WIDTHxHEIGHT nor auto")
    width, height = int(match[1]), int(match[2])
    if width % 8 or height % 8 or not (64 <= width <= 4096 and 64 <= height <= 4096):
        raise UnsupportedOption("size", f"{size}: each side must be a multiple of 8 from 64 to 4096")
    return {"width": width, "height": height}


def usage_of(prompt: str, num_images: int = 0) -> Usage:
    words = len(prompt.split())
    return Usage(
        input_tokens=words + num_images,
        total_tokens=words + num_images,
        input_tokens_details=InputDetails(text_tokens=words, image_tokens=num_images),
    )
