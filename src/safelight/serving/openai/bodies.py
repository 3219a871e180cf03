"""What OpenAI's Images API says, in its words, and what that means in ours.

The bodies are those of the `openai` SDK of 2026; what it sends through `extra_body` are fields of our own drafts.
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
from safelight.validation import CheckedModel, wrong_in

if TYPE_CHECKING:
    from safelight.spec.fields import Strength

THEIR_MODELS = re.compile(r"(gpt-image|dall-e|chatgpt-image).*")
"""Names that clients have built in; unless the operator says otherwise, they get the server's own model."""
UNNAMED = "dall-e-2"
"""Whom a request that names no model is for, there."""
DEFAULT_MODEL = "mini"
QUALITIES = {"low": 0.5, "medium": 0.75, "standard": 1.0, "auto": 1.0, "high": 1.5, "hd": 1.5}
"""Steps, as a share of the model's own number of them."""
WORDS = {"width": "size", "height": "size", "highres.scale": "size"}
"""Where they have another word for a field of our drafts."""
STORED = "0" * 64
"""Stands for a picture whose file has not been looked at yet."""
FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def unfolded(value: Any) -> Any:
    """The fields of a form are strings: what is more than a word is sent as JSON."""
    if isinstance(value, str):
        with suppress(ValueError):
            return json.loads(value)
    return value


Unfolded = BeforeValidator(unfolded)


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
    return Annotated[kind | None if field.default else kind, Unfolded]


Extras = extras_of(Draft)


class ImageRequest(Extras):
    """What generations and edits have in common."""

    prompt: Prompt
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: str | None = None
    """`WIDTHxHEIGHT` in pixels, multiples of 8, or `auto`."""
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = None
    expand: Expand | None = None
    """Ours: read choices in the prompts; `combinatorial` answers with `n` pictures of each combination."""
    response_format: Literal["url", "b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    background: Literal["auto", "transparent", "opaque"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    user: str | None = None

    @property
    def starts_from(self) -> dict[str, Any]:
        """The fields of a draft that a picture in the form is."""
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
        yield from wrong_in(Draft, fields | size | self.starts_from, WORDS)

    def draft(self, default_steps: int, *, model: str, **given: Any) -> Draft:
        """The first picture; the others differ in their seeds."""
        return parse_draft({"model": model} | self.fields(default_steps) | self.sides | given)

    def fields(self, default_steps: int) -> dict[str, Any]:
        """In the words of `spec.Draft`, all but the model and the size."""
        fields: dict[str, Any] = self.model_dump(include=set(Extras.model_fields), exclude_none=True)
        if "steps" not in fields and self.quality not in (None, "auto", "standard"):
            fields["steps"] = min(max(1, round(default_steps * QUALITIES[self.quality])), MAX_STEPS)
        if not self.starts_from:
            fields.pop("strength", None)
        return {"prompt": self.prompt} | fields

    @property
    def sides(self) -> dict[str, int]:
        """
        Raises:
            UnsupportedOption: no picture has such a size.
        """
        return {} if self.size in (None, "auto") else sides(self.size)

    def encoding(self) -> Encoding:
        quality = 100 if self.output_compression is None else max(1, self.output_compression)
        return Encoding(format=self.output_format or "png", quality=quality)

    @property
    def as_url(self) -> bool:
        """The older models answered with links unless told otherwise, the newer ones never do."""
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
        raise ValueError("a picture is needed, as a file of the multipart form")  # noqa: TRY004  pydantic's word
    return value


PictureFile = Annotated[UploadFile, BeforeValidator(file_of), WithJsonSchema({"type": "string", "format": "binary"})]
PICTURE = "The picture that is edited: PNG, JPEG, WebP or GIF. Named `image[]`, there may be several; the first counts."
MASK = "A PNG of the same shape; where it is transparent, the picture is drawn anew."


class VariationRequest(ImageRequest):
    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [{"n": 2, "size": "256x256"}]})
    prompt: Prompt = ""
    image: Annotated[PictureFile, Field(description=PICTURE, exclude=True)]
    if TYPE_CHECKING:
        strength: Strength | None  # of Extras
    input_fidelity: Literal["high", "low"] | None = None
    """`high` stays closer to the picture, where `strength` does not say."""

    @property
    def starts_from(self) -> dict[str, Any]:
        return {"init": STORED}


class EditRequest(VariationRequest):
    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [{"prompt": "an orange", "size": "auto"}]})
    prompt: Prompt  # pyright: ignore[reportGeneralTypeIssues]
    mask: Annotated[PictureFile | None, Field(description=MASK, exclude=True)] = None


class ImageData(BaseModel):
    b64_json: str | None = None
    url: str | None = None
    seed: int
    """Ours: the same seed draws the same picture."""


class InputDetails(BaseModel):
    text_tokens: int
    image_tokens: int = 0


class Usage(BaseModel):
    """Tokens as OpenAI counts them have no meaning here: the prompt's words are counted, pictures are not."""

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
    """A picture on its way, or whole."""

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
    """Ours: what it draws well. Larger pictures are begun at such a size and enlarged. Not in the list of all."""


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelView]


def pairs_in(table: str) -> list[tuple[str, str]]:
    """Of `Settings.openai_models`: their names, in which * is anything, and ours."""
    return [(theirs, ours) for theirs, _, ours in (pair.partition("=") for pair in table.split())]


def model_of(name: str | None, table: str) -> str:
    """The model of ours that a name stands for."""
    name = name or UNNAMED
    ours = next((ours for theirs, ours in pairs_in(table) if fnmatchcase(name, theirs)), name)
    return DEFAULT_MODEL if THEIR_MODELS.fullmatch(ours) else ours


def final_sides(spec: Mapping[str, Any]) -> tuple[int, int]:
    """Of the picture that a spec makes, with its second pass if there is one."""
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
