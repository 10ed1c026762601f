"""Filling holes without a model."""

import cv2
import numpy as np

METHODS = {"telea": cv2.INPAINT_TELEA, "ns": cv2.INPAINT_NS}


def continue_surround(
    pixels: np.ndarray, hole: np.ndarray, *, radius: float = 5, side: int = 512, method: str = "telea"
) -> np.ndarray:
    """Continue what surrounds a hole into it: no weights, a fraction of a second, smears large holes.

    Pictures larger than ``side`` are filled at reduced size, because the methods' reach and time grow with the hole,
    and only the hole is scaled back.

    Args:
        pixels: (H,W,3) uint8.
        hole: (H,W) bool.
        radius: Neighbourhood in pixels that a filled pixel is made from.
        side: Longest side that is filled at full size.
        method: "telea" (fast marching, Telea 2004) or "ns" (Navier-Stokes, Bertalmio et al. 2001).

    Returns:
        (H,W,3) uint8; pixels outside the hole are untouched.
    """
    height, width = hole.shape
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
    # Any pixel that a small one averages may belong to the object, so the small hole is not thresholded at half.
    small_hole = cv2.resize(hole.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) > 0
    filled = cv2.inpaint(np.ascontiguousarray(small), small_hole.astype(np.uint8), radius, METHODS[method])
    if scale < 1:
        filled = cv2.resize(filled, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.where(hole[..., None], filled, pixels)
