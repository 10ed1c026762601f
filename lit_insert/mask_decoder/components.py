"""Which of a mask's parts to keep."""

from typing import Literal

import cv2
import numpy as np

from lit_insert.errors import InputError

Components = Literal["all", "largest"]


def keep_components(mask: np.ndarray, components: Components = "all", min_area: float = 0.0) -> np.ndarray:
    """Drop parts that do not count; parts that touch at a corner are one.

    Args:
        mask: (H,W) bool.
        components: "all", or the "largest" only (of equals the first, by rows).
        min_area: Smallest part that is kept: below 1 as a fraction of the picture, from 1 on in pixels.

    Returns:
        (H,W) bool.

    Raises:
        InputError: If ``components`` is neither or ``min_area`` is negative.
    """
    if components not in ("all", "largest"):
        raise InputError(f"components is {components!r}; give all or largest")
    if not min_area >= 0:
        raise InputError(f"min_area is {min_area:g}; give a fraction below 1, or pixels")
    if (components == "all" and min_area == 0) or not mask.any():
        return mask
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    keep = areas >= (min_area * mask.size if min_area < 1 else min_area)
    keep[0] = False  # the background
    if components == "largest":
        best = 1 + int(areas[1:].argmax())
        keep &= np.arange(len(areas)) == best
    return keep[labels]
