"""The picture that a draft starts from: its size, its grown canvas, the mask of its background."""

from safelight.imaging.canvas import outpaint_canvas
from safelight.imaging.subject import background_mask
from safelight.models.checkpoints.sizes import own_area, rounded, same_area
from safelight.models.networks.pool import Found
from safelight.spec import Draft
from safelight.studio import Studio


def grow_canvas(draft: Draft, studio: Studio, found: Found) -> Draft:
    """Outpainting: return a masked draft of the grown picture, whose old pixels stay."""
    assert draft.init is not None
    assert draft.extend is not None
    step = found.description.side_step
    canvas, mask = outpaint_canvas(studio.picture(draft.init), draft.extend)
    grown = {
        "init": studio.keep_made(canvas, of=draft.init),
        "mask": studio.assets.put_image(mask),
        "extend": None,
        "width": draft.width or rounded(canvas.width, step),
        "height": draft.height or rounded(canvas.height, step),
        "strength": draft.strength or 1.0,
    }
    return Draft.model_validate(draft.model_dump() | grown)


def fit_canvas(draft: Draft, studio: Studio, found: Found) -> Draft:
    """Choose width and height after the start picture: by `scale`, else its proportions at the model's own area."""
    assert draft.init is not None
    (across, down), step = studio.size_of(draft.init), found.description.side_step
    if draft.scale is not None:
        width, height = rounded(across * draft.scale, step), rounded(down * draft.scale, step)
        return Draft.model_validate(draft.model_dump() | {"width": width, "height": height, "scale": None})
    if draft.only_masked or (draft.width and draft.height):
        return draft
    width, height = same_area(across / down, own_area(found.description), step)
    if draft.width:
        width, height = draft.width, rounded(draft.width * down / across, step)
    elif draft.height:
        width, height = rounded(draft.height * across / down, step), draft.height
    return Draft.model_validate(draft.model_dump() | {"width": width, "height": height})


def find_background(draft: Draft, studio: Studio, found: Found) -> Draft:
    """Return a masked draft that draws all but the subject, at the model's own size, and lays it behind the subject."""
    assert draft.init is not None
    image = studio.picture(draft.init, mode="RGBA")
    description = found.description
    width, height = same_area(image.width / image.height, own_area(description), description.side_step)
    masked = {
        # Opening in RGB lays a picture over white; converting keeps half-transparent edges free of it.
        "init": studio.keep_made(image.convert("RGB"), of=draft.init),
        "mask": draft.mask or studio.assets.put_image(background_mask(image)),
        "replace_background": False,
        "soft_mask": True,
        "only_masked": True,
        "strength": draft.strength or 1.0,
        "width": draft.width or width,
        "height": draft.height or height,
    }
    return Draft.model_validate(draft.model_dump() | masked)
