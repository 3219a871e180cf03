"""A picture is a function of its spec: what callers may request (`Draft`), and what is then done (`Spec`).

    Draft   every field optional but the prompt; None means "choose for me"
    Spec    frozen and complete: TextToImage | ImageToImage | Inpaint | Edit | Variation | Upscale, told apart by `task`

    fields.py    types of single fields: bounds and units
    marks.py     which fields hold prompts and pictures
    parts.py     second pass, tiles, intervals, pinned parts of the model
    effects.py   regions, LoRA, ControlNet, IP-Adapter, FreeU, plugins: as requested, and as pinned
    tasks.py     the specs
    digest.py    the sha256 that names a spec for good
    draft.py     the draft
    complete.py  from a draft and a model's defaults to a spec
    interface.py how flags, bodies and tools take their arguments from a draft's fields

Pictures enter a spec by the sha256 of their stored file, so a spec is a few hundred bytes of JSON.
"""

from safelight.spec.draft import Draft, parse_draft
from safelight.spec.effects import ControlRequest, FreeU, LoraRequest, PicturePromptRequest, Region
from safelight.spec.parts import GuidanceInterval, HighresFix, Sides, Tiles
from safelight.spec.tasks import (
    Denoised,
    Edit,
    ImageToImage,
    Inpaint,
    Refined,
    Spec,
    TextToImage,
    Upscale,
    Variation,
    parse_spec,
)

__all__ = [
    "ControlRequest",
    "Denoised",
    "Draft",
    "Edit",
    "FreeU",
    "GuidanceInterval",
    "HighresFix",
    "ImageToImage",
    "Inpaint",
    "LoraRequest",
    "PicturePromptRequest",
    "Refined",
    "Region",
    "Sides",
    "Spec",
    "TextToImage",
    "Tiles",
    "Upscale",
    "Variation",
    "parse_draft",
    "parse_spec",
]
