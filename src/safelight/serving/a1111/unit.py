"""A unit of ControlNet's extension, as clients send it: one of `alwayson_scripts.controlnet.args`.

A unit is a ControlNet, a T2I-Adapter or an IP-Adapter, told by its model. Hints are drawn at the size of the picture,
which there is called pixel perfect, so `processor_res` is passed over.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from safelight.errors import InvalidField, InvalidFields, SafelightError
from safelight.models.vision.preprocessors import PREPROCESSORS
from safelight.serving.a1111.body import FITS, A1111Body
from safelight.spec.effects import ControlMode, HintKind
from safelight.spec.fields import Fit, Fraction
from safelight.validation import faults_in

MODULES = {
    "none": "none",
    "canny": "canny",
    "invert": "invert",
    "scribble_xdog": "scribble",
    "lineart_standard": "lineart",
    "tile_resample": "tile",
}
"""Its modules that we have too; our own names are taken as well. The others need networks of their own."""
MODES: Mapping[str, ControlMode] = {
    "0": "balanced",
    "1": "prompt",
    "2": "control",
    "balanced": "balanced",
    "my prompt is more important": "prompt",
    "controlnet is more important": "control",
}
RESIZE_MODES: Mapping[str, Fit] = {
    **{str(number): fit for number, fit in FITS.items()},
    "just resize": "stretch",
    "crop and resize": "crop",
    "scale to fit (inner fit)": "crop",
    "inner fit (scale to fit)": "crop",
    "resize and fill": "pad",
    "envelope (outer fit)": "pad",
    "outer fit (shrink to fit)": "pad",
}
UNION_TYPES: Mapping[str, HintKind | None] = {
    "openpose": "pose",
    "depth": "depth",
    "soft edge": "soft-edge",
    "hard edge": "hard-edge",
    "normal map": "normal",
    "segmentation": "segmentation",
    "tile": "tile",
    "inpaint": "repaint",
    "unknown": None,
}
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "resize_mode": RESIZE_MODES,
    "control_mode": MODES,
    "union_control_type": UNION_TYPES,
}
OLD_NAMES = {"guidance": "guidance_end", "lowvram": "low_vram", "input_image": "image", "guessmode": "guess_mode"}
FLAGS = 2
"""Whether it is img2img, and whether a person asks: what once came before the arguments of the units."""
POSITIONS = (
    "enabled module model weight image scribble_mode resize_mode rgbbgr_mode low_vram processor_res threshold_a"
    " threshold_b guidance_start guidance_end guess_mode"
).split()
"""A unit as its oldest clients send it, without names."""
UNREAD = ("mask", "advanced_weighting", "effective_region_mask", "ipadapter_input", "scribble_mode", "rgbbgr_mode")
WHITES_FIRST = re.compile(r" \(.*\)$")
"""`invert (from white bg & black line)`."""
HIGHEST_THRESHOLD = 255


def picture_in(said: Any) -> Any:
    """Base64, `{"image": base64}`, or either in a list."""
    if isinstance(said, list | tuple):
        said = said[0] if said else ""
    return (said.get("image") or "") if isinstance(said, Mapping) else said


def word_of(said: Any) -> Any:
    """Choices have numbers and names there."""
    return str(said) if isinstance(said, int) and not isinstance(said, bool) else said


Word = Annotated[str, BeforeValidator(word_of)]


class Unit(A1111Body):
    other_names = OLD_NAMES

    enabled: bool = True
    module: str = "none"
    model: str = "None"
    weight: Annotated[float, Field(ge=0, le=2)] = 1.0
    image: Annotated[str, BeforeValidator(picture_in)] = ""
    """In img2img, nothing means the picture that is started from."""
    mask: object = None
    resize_mode: Word = "Crop and Resize"
    processor_res: float = -1
    threshold_a: float = -1
    threshold_b: float = -1
    guidance_start: Fraction = 0.0
    guidance_end: Fraction = 1.0
    control_mode: Word = "Balanced"
    guess_mode: bool = False
    scribble_mode: bool = False
    rgbbgr_mode: bool = False
    union_control_type: str = "Unknown"
    pixel_perfect: bool = False
    hr_option: Word = "Both"
    save_detected_map: bool = True
    advanced_weighting: object = None
    effective_region_mask: object = None
    ipadapter_input: object = None

    @model_validator(mode="before")
    @classmethod
    def renewed(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            return {OLD_NAMES.get(str(name), name): value for name, value in values.items()}
        return values

    @property
    def shows_picture(self) -> bool:
        """A picture prompt, by the name of its module or its model."""
        return self.module.lower().startswith("ip-adapter") or "ip-adapter" in self.model.lower()

    @property
    def preprocessor(self) -> str:
        """
        Raises:
            InvalidField: nothing here does what the module does.
        """
        return preprocessor_of("module", self.module)

    @property
    def thresholds(self) -> tuple[float, float] | None:
        """Below 0, they are the module's own."""
        given = self.preprocessor == "canny" and self.threshold_a >= 0 and self.threshold_b >= 0
        return (self.threshold_a, self.threshold_b) if given else None

    def clashes(self) -> Iterator[SafelightError]:
        for name in UNREAD:
            if getattr(self, name):
                yield InvalidField(name, "is not supported here; leave it out")
        if self.model.strip().lower() in ("", "none"):
            yield InvalidField("model", "a unit has no model; GET /controlnet/model_list lists them")
        for name, known in KNOWN.items():
            if (said := getattr(self, name)).lower() not in known:
                yield InvalidField(name, f"there is no {said!r}; known are {', '.join(known)}")
        if self.guidance_start >= self.guidance_end:
            why = f"{self.guidance_start} must be below guidance_end {self.guidance_end}"
            yield InvalidField("guidance_start", why, "guidance_end")
        if self.shows_picture:
            return
        try:
            thresholds = self.thresholds or ()
        except InvalidField as error:
            yield error
        else:
            for name, value in zip(("threshold_a", "threshold_b"), thresholds, strict=False):
                if value > HIGHEST_THRESHOLD:
                    yield InvalidField(name, f"at most {HIGHEST_THRESHOLD}, not {value:g}", "module")

    def to_request(self, model: str, image: str) -> tuple[str, dict[str, Any]]:
        """Which field of a draft it belongs to, and what it says there."""
        common = {
            "model": model,
            "image": image,
            "weight": self.weight,
            "start": self.guidance_start,
            "end": self.guidance_end,
        }
        if self.shows_picture:
            return "picture_prompts", common
        return "controls", common | {
            "preprocessor": self.preprocessor,
            "thresholds": self.thresholds,
            "fit": RESIZE_MODES[self.resize_mode.lower()],
            "mode": "control" if self.guess_mode else MODES[self.control_mode.lower()],
            "hint_kind": UNION_TYPES[self.union_control_type.lower()],
        }


def units_in(where: str, args: list[Any]) -> dict[str, Unit]:
    """Those that are switched on, by their fields in the body.

    Raises:
        SafelightError: what is wrong with any of them, all at once.
    """
    units: dict[str, Unit] = {}
    wrong: list[SafelightError] = []
    for place, values in in_parts(where, args):
        try:
            units[place] = Unit.model_validate(values)
        except ValidationError as error:
            for fault in faults_in(error.errors(include_url=False), status=422).errors:
                fault.param = f"{place}.{fault.param}" if fault.param else place
                wrong.append(fault)
    if wrong:
        raise InvalidFields(wrong).alone()
    return {place: unit for place, unit in units.items() if unit.enabled}


def in_parts(where: str, args: list[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each unit by its fields, however it was sent; those that say that they are off are passed over."""
    first = next((arg for arg in args if arg is not None and not isinstance(arg, bool)), {})
    if isinstance(first, Mapping):
        parts = [(f"{where}.{place}", arg) for place, arg in enumerate(args) if not isinstance(arg, bool) and arg]
    else:
        flags = len(args) % len(POSITIONS)
        if flags not in (0, FLAGS) or len(args) < len(POSITIONS):
            why = f"units are objects, or {len(POSITIONS)} arguments each: {', '.join(POSITIONS)}"
            raise InvalidField(where, why)
        starts = range(flags, len(args), len(POSITIONS))
        parts = [(f"{where}.{start}", dict(zip(POSITIONS, args[start:], strict=False))) for start in starts]
    for place, part in parts:
        if not (isinstance(part, Mapping) and part.get("enabled") is False):
            yield place, part


def preprocessor_of(field: str, module: str) -> str:
    name = WHITES_FIRST.sub("", module.strip()).lower()
    found = MODULES.get(name, name)
    if found not in PREPROCESSORS and not found.startswith("depth/"):
        raise InvalidField(field, f"no module {module!r}; there are {', '.join([*MODULES, *own_names()])}")
    return found


def own_names() -> list[str]:
    return [name for name in PREPROCESSORS if name not in MODULES]
