"""The hints that ControlNets read: made of pictures by preprocessors, and stored.

A spec names a hint by its digest, so it does not depend on how the hint was made.
"""

from safelight.imaging.canvas import fit_to
from safelight.models.networks.memory import Allocation
from safelight.models.networks.pool import Found
from safelight.spec import ControlRequest, Draft
from safelight.spec.complete import Defaults
from safelight.studio import Studio

MAX_HINTS = 256
"""The latest hints are remembered: the pictures of one request share theirs."""


def make_hints(draft: Draft, studio: Studio, found: Found) -> Draft:
    """The draft with the digest of every control's hint."""
    defaults = found.description.defaults
    hints = [control.hint or make_hint(control, draft, studio, defaults) for control in draft.controls]
    controls = [one.model_copy(update={"hint": hint}) for one, hint in zip(draft.controls, hints, strict=True)]
    return draft.model_copy(update={"controls": tuple(controls)})


def hint_allocations(draft: Draft, studio: Studio) -> list[Allocation]:
    """The weights of the preprocessors that have hints to make."""
    return [
        allocation
        for control in draft.controls
        if not control.hint
        for allocation in studio.preprocessors.allocations(control.preprocessor)
    ]


def make_hint(control: ControlRequest, draft: Draft, studio: Studio, defaults: Defaults) -> str:
    """Make the network's input at the size of the picture, store it, and return its digest."""
    image = studio.picture(control.image)
    if control.preprocessor == "none":
        return control.image
    size = draft.width or defaults.width, draft.height or defaults.height
    if draft.init is not None and draft.only_masked:
        size = studio.size_of(draft.init)  # the part that is drawn is cut out of it later
    size = within(*size, studio.settings.max_output_pixels)
    key = control.image, control.preprocessor, control.thresholds, control.fit, size
    with studio.making_hints:
        if key not in studio.hints:
            fitted = fit_to(image, *size, control.fit)
            hint = studio.preprocessors.make_hint(control.preprocessor, fitted, thresholds=control.thresholds)
            while len(studio.hints) >= MAX_HINTS:
                del studio.hints[next(iter(studio.hints))]
            studio.hints[key] = studio.assets.put_image(hint)
        return studio.hints[key]


def within(width: int, height: int, pixels: int) -> tuple[int, int]:
    """The same proportions in at most `pixels`: callers choose sizes, and finding edges takes time."""
    scale = min(1.0, (pixels / (width * height)) ** 0.5)
    return max(1, int(width * scale)), max(1, int(height * scale))
