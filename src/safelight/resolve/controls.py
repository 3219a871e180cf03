"""ControlNets and IP-Adapters of a draft, pinned; and the hints that ControlNets read, made and stored.

A spec names a hint by its digest, so it does not depend on how the hint was made.
"""

from safelight.imaging.canvas import fit_to
from safelight.models.networks.memory import Allocation
from safelight.models.networks.pool import Found
from safelight.spec import ControlRequest, Draft
from safelight.spec.complete import Defaults
from safelight.spec.effects import PinnedControl, PinnedPicturePrompt
from safelight.studio import Studio

MAX_HINTS = 256
"""The latest hints are remembered: the pictures of one request share theirs."""


def pin_controls(draft: Draft, studio: Studio, found: Found) -> Draft:
    """Each control with the digest of its network and its hint, each picture prompt with its adapter and encoder."""
    cache, description = studio.controls, found.description
    pins = [cache.pin(control, description, model_name=draft.model) for control in draft.controls]
    hints = [control.hint or make_hint(control, draft, studio, description.defaults) for control in draft.controls]
    adapters = [cache.pin_picture(prompt, description, model_name=draft.model) for prompt in draft.picture_prompts]
    for prompt in draft.picture_prompts:
        studio.assets.path_of(prompt.image)
    return draft.model_copy(
        update={
            "controls": tuple(
                PinnedControl.model_validate(control.model_dump() | pin | {"hint": hint})
                for control, pin, hint in zip(draft.controls, pins, hints, strict=True)
            ),
            "picture_prompts": tuple(
                PinnedPicturePrompt.model_validate(prompt.model_dump() | pin)
                for prompt, pin in zip(draft.picture_prompts, adapters, strict=True)
            ),
        }
    )


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
