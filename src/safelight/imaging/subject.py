"""Separate an image's subject from its background, by transparency or by an even colour at the edges."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from safelight.errors import InvalidRequest

TOLERANCE = 24
"""Levels (of 255) by which a background pixel may differ from the background colour: JPEG noise, soft shadows."""
MIN_EDGE_SHARE = 0.75
"""Minimum fraction of the image's edge with the background colour; the subject may touch the edge."""
RIM_PX = 3
"""Pixels up to this distance from the background may be a mixture of both."""
OPAQUE_SHARE = 0.9
"""A pixel with at least this share of the subject counts as subject only."""


def background_mask(image: Image.Image) -> Image.Image:
    """Return a mask: white for the background, black for the subject, grey where they mix; `image` is RGBA.

    Raises:
        InvalidRequest: subject and background cannot be separated, or one of them is missing.
    """
    alpha = np.asarray(image.getchannel("A"))
    mask = (
        255 - alpha
        if alpha.min() < 255
        else background_by_edge_colour(np.asarray(image.convert("RGB"), dtype=np.int16))
    )
    if mask.min() == 255:
        raise InvalidRequest(
            "replace_background: the image is all background; give a mask that is white on the background"
        )
    return Image.fromarray(mask.astype(np.uint8))


def background_by_edge_colour(colours: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Return the mask of regions in the edge's colour that touch the edge."""
    # This import takes much of a second, and only images without transparency need it.
    from scipy.ndimage import distance_transform_edt, label

    edge = np.concatenate([colours[0], colours[-1], colours[:, 0], colours[:, -1]])
    plain = np.median(edge, axis=0)
    distance = np.abs(colours - plain).max(axis=-1)
    on_edge = np.concatenate([distance[0], distance[-1], distance[:, 0], distance[:, -1]])
    if (on_edge <= TOLERANCE).mean() < MIN_EDGE_SHARE:
        raise InvalidRequest(
            "replace_background: the picture has no transparency, and its edges are not of one colour; "
            "give a mask that is white on the background"
        )
    labelled: Any = label(distance <= TOLERANCE)
    regions: NDArray[np.int32] = labelled[0]
    reaching = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    background = np.isin(regions, reaching[reaching > 0])
    depth: NDArray[np.float64] = distance_transform_edt(~background)  # pyright: ignore[reportAssignmentType]
    inside = depth > RIM_PX
    if not inside.any():
        return (255 * background).astype(np.uint8)
    # In the rim, a pixel's colour lies between the background's and that of the nearest subject pixel.
    nearest = np.asarray(distance_transform_edt(~inside, return_distances=False, return_indices=True))
    rows, columns = nearest[0], nearest[1]
    full = np.abs(colours[rows, columns] - plain).max(axis=-1)
    share = np.clip(distance / np.maximum(full, 1), 0, 1)
    share = np.where(inside | (share >= OPAQUE_SHARE), 1.0, share)
    return np.where(background, 255, np.rint(255 * (1 - share))).astype(np.uint8)
