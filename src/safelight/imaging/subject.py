"""What of a picture is its subject, and what the background: by transparency, or by an even colour at the edges."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from safelight.errors import InvalidRequest

TOLERANCE = 24
"""Levels of 255 by which a colour may differ from the background's: noise of JPEG files, soft shadows."""
EVEN = 0.75
"""The share of the picture's edge that must be of one colour; a subject may touch the edge."""
RIM_PX = 3
"""How far from the background a pixel may be a mixture of both."""
WHOLE = 0.9
"""A pixel that is as much of the subject as this is all of it."""


def background_mask(image: Image.Image) -> Image.Image:
    """White where the background is, black where the subject is, grey where they mix; `image` is RGBA.

    Raises:
        InvalidRequest: nothing tells them apart, or one of them is not there.
    """
    alpha = np.asarray(image.getchannel("A"))
    mask = 255 - alpha if alpha.min() < 255 else around(np.asarray(image.convert("RGB"), dtype=np.int16))
    if mask.min() == 255:
        raise InvalidRequest("replace_background: nothing but background is seen; give a mask, white where it is")
    return Image.fromarray(mask.astype(np.uint8))


def around(colours: NDArray[np.int16]) -> NDArray[np.uint8]:
    """All that is of the edge's colour and reaches the edge."""
    # A good part of a second, which only pictures without transparency need to wait for.
    from scipy.ndimage import distance_transform_edt, label

    edge = np.concatenate([colours[0], colours[-1], colours[:, 0], colours[:, -1]])
    plain = np.median(edge, axis=0)
    distance = np.abs(colours - plain).max(axis=-1)
    on_edge = np.concatenate([distance[0], distance[-1], distance[:, 0], distance[:, -1]])
    if (on_edge <= TOLERANCE).mean() < EVEN:
        raise InvalidRequest(
            "replace_background: the picture has no transparency, and its edges are not of one colour; "
            "give a mask, white where the background is"
        )
    labelled: Any = label(distance <= TOLERANCE)
    regions: NDArray[np.int32] = labelled[0]
    reaching = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    background = np.isin(regions, reaching[reaching > 0])
    depth: NDArray[np.float64] = distance_transform_edt(~background)  # pyright: ignore[reportAssignmentType]
    inside = depth > RIM_PX
    if not inside.any():
        return (255 * background).astype(np.uint8)
    # In the rim, a pixel lies between the background's colour and that of the subject at its nearest.
    nearest = np.asarray(distance_transform_edt(~inside, return_distances=False, return_indices=True))
    rows, columns = nearest[0], nearest[1]
    full = np.abs(colours[rows, columns] - plain).max(axis=-1)
    share = np.clip(distance / np.maximum(full, 1), 0, 1)
    share = np.where(inside | (share >= WHOLE), 1.0, share)
    return np.where(background, 255, np.rint(255 * (1 - share))).astype(np.uint8)
