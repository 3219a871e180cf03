"""A unit of the ControlNet extension, as clients send it: an item of `alwayson_scripts.controlnet.args`.

Its model determines whether a unit is a ControlNet, a T2I-Adapter or an IP-Adapter. Hints are made at the size of the
picture, which the extension calls pixel perfect, so `processor_res` is ignored.
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
from safelight.validation import to_invalid_fields

MODULES = {
    "none": "none",
    "canny": "canny",
    "invert": "invert",
    "scribble_xdog": "scribble",
    "lineart_standard": "lineart",
    "tile_resample": "tile",
}
"""The extension's modules that we support; our own names are accepted too. The others need further networks."""
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
"""Number of leading flags that old clients send before the units' arguments: is_img2img and is_ui."""
POSITIONS = (
    "enabled module model weight image scribble_mode resize_mode rgbbgr_mode low_vram processor_res threshold_a"
    " threshold_b guidance_start guidance_end guess_mode"
).split()
"""The positional arguments of a unit, as the oldest clients send it."""
UNSUPPORTED = ("mask", "advanced_weighting", "effective_region_mask", "ipadapter_input", "scribble_mode", "rgbbgr_mode")
MODULE_NOTE = re.compile(r" \(.*\)$")
"""The note in `invert (from white bg & black line)`."""
HIGHEST_THRESHOLD = 255


def unwrap_picture(value: Any) -> Any:
    """Unwrap base64, `{"image": base64}`, or either in a list."""
    if isinstance(value, list | tuple):
        value = value[0] if value else ""
    return (value.get("image") or "") if isinstance(value, Mapping) else value


def choice_name(value: Any) -> Any:
    """Choices may be sent as numbers or names; returns a string."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Choice = Annotated[str, BeforeValidator(choice_name)]


class Unit(A1111Body):
    other_names = OLD_NAMES

    enabled: bool = True
    module: str = "none"
    model: str = "None"
    weight: Annotated[float, Field(ge=0, le=2)] = 1.0
    image: Annotated[str, BeforeValidator(unwrap_picture)] = ""
    """In img2img, empty means the init picture."""
    mask: object = None
    resize_mode: Choice = "Crop and Resize"
    processor_res: float = -1
    threshold_a: float = -1
    threshold_b: float = -1
    guidance_start: Fraction = 0.0
    guidance_end: Fraction = 1.0
    control_mode: Choice = "Balanced"
    guess_mode: bool = False
    scribble_mode: bool = False
    rgbbgr_mode: bool = False
    union_control_type: str = "Unknown"
    pixel_perfect: bool = False
    hr_option: Choice = "Both"
    save_detected_map: bool = True
    advanced_weighting: object = None
    effective_region_mask: object = None
    ipadapter_input: object = None

    @model_validator(mode="before")
    @classmethod
    def rename_old_fields(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            return {OLD_NAMES.get(str(name), name): value for name, value in values.items()}
        return values

    @property
    def is_ip_adapter(self) -> bool:
        """Whether it is a picture prompt, by the name of its module or model."""
        return self.module.lower().startswith("ip-adapter") or "ip-adapter" in self.model.lower()

    @property
    def preprocessor(self) -> str:
        """
        Raises:
            InvalidField: the module is not supported.
        """
        return preprocessor_of("module", self.module)

    @property
    def thresholds(self) -> tuple[float, float] | None:
        """The thresholds of canny; None, also if one is below 0, for the module's defaults."""
        given = self.preprocessor == "canny" and self.threshold_a >= 0 and self.threshold_b >= 0
        return (self.threshold_a, self.threshold_b) if given else None

    def clashes(self) -> Iterator[SafelightError]:
        for name in UNSUPPORTED:
            if getattr(self, name):
                yield InvalidField(name, "is not supported here; leave it out")
        if self.model.strip().lower() in ("", "none"):
            yield InvalidField("model", "a unit has no model; GET /controlnet/model_list lists the models")
        for name, choices in KNOWN.items():
            if (choice := getattr(self, name)).lower() not in choices:
                yield InvalidField(name, f"there is no {choice!r}; known are {', '.join(choices)}")
        if self.guidance_start >= self.guidance_end:
            reason = f"{self.guidance_start} must be below guidance_end {self.guidance_end}"
            yield InvalidField("guidance_start", reason, "guidance_end")
        if self.is_ip_adapter:
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
        """The draft field of this unit, and the unit's request in it."""
        common = {
            "model": model,
            "image": image,
            "weight": self.weight,
            "start": self.guidance_start,
            "end": self.guidance_end,
        }
        if self.is_ip_adapter:
            return "picture_prompts", common
        return "controls", common | {
            "preprocessor": self.preprocessor,
            "thresholds": self.thresholds,
            "fit": RESIZE_MODES[self.resize_mode.lower()],
            "mode": "control" if self.guess_mode else MODES[self.control_mode.lower()],
            "hint_kind": UNION_TYPES[self.union_control_type.lower()],
        }


def units_in(where: str, args: list[Any]) -> dict[str, Unit]:
    """The enabled units, by their field paths in the body.

    Raises:
        SafelightError: all errors of the units at once.
    """
    units: dict[str, Unit] = {}
    errors: list[SafelightError] = []
    for path, values in split_units(where, args):
        try:
            units[path] = Unit.model_validate(values)
        except ValidationError as error:
            for problem in to_invalid_fields(error.errors(include_url=False), status=422).errors:
                problem.param = f"{path}.{problem.param}" if problem.param else path
                errors.append(problem)
    if errors:
        raise InvalidFields(errors).simplified()
    return {path: unit for path, unit in units.items() if unit.enabled}


def split_units(where: str, args: list[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each unit's field path and values, whichever way it was sent; disabled ones are skipped."""
    first = next((arg for arg in args if arg is not None and not isinstance(arg, bool)), {})
    if isinstance(first, Mapping):
        parts = [(f"{where}.{path}", arg) for path, arg in enumerate(args) if not isinstance(arg, bool) and arg]
    else:
        flags = len(args) % len(POSITIONS)
        if flags not in (0, FLAGS) or len(args) < len(POSITIONS):
            reason = f"units are objects, or {len(POSITIONS)} arguments each: {', '.join(POSITIONS)}"
            raise InvalidField(where, reason)
        starts = range(flags, len(args), len(POSITIONS))
        parts = [(f"{where}.{start}", dict(zip(POSITIONS, args[start:], strict=False))) for start in starts]
    for path, part in parts:
        if not (isinstance(part, Mapping) and part.get("enabled") is False):
            yield path, part


def preprocessor_of(field: str, module: str) -> str:
    name = MODULE_NOTE.sub("", module.strip()).lower()
    found = MODULES.get(name, name)
    if found not in PREPROCESSORS and not found.startswith("depth/"):
        raise InvalidField(field, f"no module {module!r}; there are {', '.join([*MODULES, *our_modules()])}")
    return found


def our_modules() -> list[str]:
    return [name for name in PREPROCESSORS if name not in MODULES]
