"""The flags of `safelight generate`, from the fields of `Draft`: what text alone cannot say, and where help shows it.

A plain field needs no line here: its flag has the field's name, type, default and docstring.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.cli.from_fields import Fields, Flag
from safelight.cli.kept import kept
from safelight.cli.leads import CONTROL_FORM, PICTURE_FORM, control_requests, picture_requests
from safelight.cli.regions import REGION_FORM, region_requests
from safelight.errors import InvalidRequest
from safelight.spec import Draft
from safelight.spec.complete import Defaults

if TYPE_CHECKING:
    from safelight.settings import Settings

ELSEWHERE = {"prompt", "model", "scale", "tiles", "soft_mask"}
"""Fields without a flag made here: `generate` declares prompt and model itself, `safelight upscale` takes scale and
tiles, and soft masks are for clients in which they are painted."""
OWN = "the model's own"
EFFECT_FORM = "NAME[:KEY=VALUE,...]"
OPTIONS, DRAWING, START, SECOND = "", "How it is drawn", "Starting from a picture", "A second, larger pass"
PARTS, LED = "In place of parts of the model", "Led by pictures"
PANELS = {
    OPTIONS: ("negative_prompt", "seed", "width", "height"),
    DRAWING: (),
    PARTS: ("vae", "text_encoder"),
    START: (
        "init", "strength", "fit", "mask", "mask_blur", "mask_invert", "only_masked", "padding", "replace_background",
        "image_guidance", "extend",
    ),
    LED: ("controls", "picture_prompts"),
    SECOND: ("highres",),
}  # fmt: skip
"""Where `--help` shows a field; the others are about how the picture is drawn."""


def fields_of(draft: type[Draft] = Draft) -> Fields:
    return {name: field for name, field in draft.model_fields.items() if name not in ELSEWHERE}


def interval(text: str, _settings: "Settings") -> dict[str, str]:
    """`0.2,0.8`; the spec checks whether these are fractions."""
    start, comma, end = text.partition(",")
    if not comma:
        raise InvalidRequest(
            f"--guidance-interval needs two fractions separated by a comma, such as 0.2,0.8, not {text!r}"
        )
    return {"start": start, "end": end}


def factors(text: str, _settings: "Settings") -> dict[str, str]:
    """Four numbers; the spec checks whether they are in bounds."""
    values = text.split(",")
    if len(values) != 4:
        raise InvalidRequest(f"--freeu needs four numbers separated by commas, such as 1.5,1.6,0.9,0.2, not {text!r}")
    return dict(zip(("b1", "b2", "s1", "s2"), values, strict=True))


def names(text: str, _settings: "Settings") -> list[str]:
    return text.split(",")


def lora_requests(texts: Sequence[str], _settings: "Settings") -> list[dict[str, str]]:
    return [lora_request(text) for text in texts]


def lora_request(text: str) -> dict[str, str]:
    """`name`, or `name:0.8`; a path may have colons of its own."""
    name, colon, weight = text.rpartition(":")
    if not colon or "/" in weight or "\\" in weight:
        return {"name": text}
    return {"name": name, "weight": weight}


def effect_values(texts: Sequence[str], _settings: "Settings") -> dict[str, Any]:
    """`focus`, `focus:words=1.5,places=1.1`, or `focus:{"words": 1.5}` for values that are no single words."""
    effects: dict[str, Any] = {}
    for text in texts:
        name, _, values = text.partition(":")
        if name in effects:
            raise InvalidRequest(f"--effect {name} is given twice: give all its fields at once")
        effects[name] = json_object(values) if values.startswith("{") else dict(pairs(values)) if values else {}
    return effects


def pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise InvalidRequest(f"--effect is {EFFECT_FORM}, such as focus:words=1.5, and {part!r} is no KEY=VALUE")
        yield key.strip(), value


def json_object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"--effect: {text!r} is no JSON: {error}") from None


def sides(text: str, _settings: "Settings") -> dict[str, str]:
    """`left=64,top=32`, or `64` for every side."""
    if "=" not in text:
        return dict.fromkeys(("left", "top", "right", "bottom"), text)
    return {side.strip(): pixels for side, _, pixels in (part.partition("=") for part in text.split(","))}


FLAGS: Mapping[str, Flag] = {name: Flag(shown=OWN) for name in Defaults.model_fields} | {
    "negative_prompt": Flag(name="negative"),
    "seed": Flag(short="s", shown="random"),
    "width": Flag(short="W", shown=OWN),
    "height": Flag(short="H", shown=OWN),
    "sampler": Flag(
        shown=OWN,
        help="Sampler with its noise schedule, by its community name; `safelight samplers` lists them.",
    ),
    "guidance": Flag(short="g", shown=OWN),
    "guidance_interval": Flag(
        kind=str,
        parse=interval,
        metavar="FROM,TO",
        shown="0,1",
        help="Guidance interval: the part of the steps, as fractions, in which guidance acts: 0.2,0.8.",
    ),
    "regions": Flag(
        name="region",
        kind=list[str],
        parse=region_requests,
        metavar=REGION_FORM,
        help="A prompt for a part of the picture: left:a red apple; or 0.5,0,1,1@0.6:a blue cup, in fractions of width "
        "and height, with a share of 0.6 there; or mask.png:a cat. May be given again.",
    ),
    "pag_scale": Flag(name="pag", metavar="SCALE", shown="off"),
    "pag_layers": Flag(kind=str, parse=names, metavar="NAME,...", shown="mid"),
    "sag_scale": Flag(name="sag", metavar="SCALE", shown="off"),
    "freeu": Flag(
        kind=str,
        parse=factors,
        metavar="B1,B2,S1,S2",
        shown="off",
        help="FreeU's factors: 1.5,1.6,0.9,0.2 for Stable Diffusion 1, 1.3,1.4,0.9,0.2 for SDXL.",
    ),
    "effects": Flag(
        name="effect",
        kind=list[str],
        parse=effect_values,
        metavar=EFFECT_FORM,
        help="An effect of an installed plugin with its fields, as focus:words=1.5 or as JSON; may be given again. "
        "`safelight plugins` lists them.",
    ),
    "refiner": Flag(metavar="MODEL", shown="none"),
    "refiner_switch": Flag(shown="0.8"),
    "loras": Flag(
        name="lora",
        kind=list[str],
        parse=lora_requests,
        metavar="NAME[:WEIGHT]",
        help="A LoRA of SAFELIGHT_HOME/loras, or the path of one; may be given several times. "
        "`safelight lora list` lists them.",
    ),
    "vae": Flag(
        metavar="NAME",
        shown=OWN,
        help="VAE in place of the model's own: a file or folder of SAFELIGHT_HOME/vaes, a path, or a model that "
        "contains it.",
    ),
    "text_encoder": Flag(
        metavar="NAME",
        shown=OWN,
        help="Text encoder (CLIP or T5) of the same width in place of the model's own: a file or folder of "
        "SAFELIGHT_HOME/text_encoders, a path, or a model that contains it.",
    ),
    "init": Flag(short="i", kind=Path, parse=kept, metavar="FILE"),
    "mask": Flag(kind=Path, parse=kept, metavar="FILE"),
    "extend": Flag(
        kind=str,
        parse=sides,
        metavar="SIDE=PIXELS,...",
        help="Outpainting: extend the picture by left=64,top=32, or by one number on every side. Multiples of 8.",
    ),
    "controls": Flag(
        name="control",
        kind=list[str],
        parse=control_requests,
        metavar=CONTROL_FORM,
        help="Control the layout with a picture and a ControlNet or T2I-Adapter: sketch.png:canny-sd15:canny:0.8:0-0.6 "
        "makes a Canny edge image of sketch.png and applies canny-sd15 at weight 0.8 in the "
        "first 60 % of the steps. May "
        "be given several times. `safelight control list` lists networks and preprocessors.",
    ),
    "picture_prompts": Flag(
        name="ip",
        kind=list[str],
        parse=picture_requests,
        metavar=PICTURE_FORM,
        help="A picture as part of the prompt, through an IP-Adapter: cat.png:ip-adapter_sd15:0.6. For FaceID, a face "
        "embedding in a .npy or .json file, or an aligned face for a face model. May be given several times.",
    ),
    "highres": Flag(metavar="SCALE"),
    "highres_steps": Flag(shown="as the first"),
    "highres_upscaler": Flag(
        kind=str,
        help="Upscaler that enlarges the first pass: lanczos, latent, latent-bilinear, realesrgan-x4plus, ...",
    ),
}
"""By field, or by `field_part`."""
