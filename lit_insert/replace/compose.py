"""Putting the new pixels into the photo, and judging how that went."""

import cv2
import numpy as np

from lit_insert.blending import background_difference as background_difference
from lit_insert.blending import blend as blend
from lit_insert.blending import seam_ratio as seam_ratio
from lit_insert.replace.region import ReplaceMask


def over(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Alpha (H,W) of two layers, one over the other."""
    return 1 - (1 - lower) * (1 - upper)


def seamless(paint: np.ndarray, photo: np.ndarray, where: ReplaceMask) -> np.ndarray:
    """The paint with its gradients kept and its colours fitted to the photo along the mask's edge.

    Poisson blending (Pérez et al. 2003) by OpenCV.

    Args:
        paint: (S,S,3) uint8.
        photo: (S,S,3) uint8.
        where: (S,S); its outermost two pixels are left as painted, since the method needs a border.
    """
    inner = where.copy()
    inner[:2], inner[-2:], inner[:, :2], inner[:, -2:] = False, False, False, False
    if not inner.any():
        return paint
    mask = inner.astype(np.uint8) * 255
    left, top, width, height = cv2.boundingRect(mask)
    middle = (left + width // 2, top + height // 2)
    cloned = cv2.seamlessClone(np.ascontiguousarray(paint), np.ascontiguousarray(photo), mask, middle, cv2.NORMAL_CLONE)
    return np.where(inner[..., None], cloned, paint)


def change_inside(photo: np.ndarray, result: np.ndarray, mask: ReplaceMask) -> float:
    """Mean difference over a mask (H,W) and the channels, in steps of 1/255; 0 for an empty mask."""
    if not mask.any():
        return 0.0
    return float(np.abs(photo[mask].astype(np.float32) - result[mask].astype(np.float32)).mean())
