"""New pixels into a photo, every other byte untouched, and how much of it shows."""

import cv2
import numpy as np


def blend(photo: np.ndarray, paint: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """``photo + alpha·(paint - photo)``, rounded; where alpha is 0 the photo's bytes themselves.

    Args:
        photo: (H,W,3) uint8.
        paint: (H,W,3) uint8.
        alpha: (H,W) in [0,1].
    """
    weight = alpha[..., None].astype(np.float32)
    mixed = photo + weight * (paint.astype(np.float32) - photo)
    return np.where(weight > 0, np.rint(mixed).astype(np.uint8), photo)


def background_difference(photo: np.ndarray, result: np.ndarray, alpha: np.ndarray) -> int:
    """Largest difference of any channel where alpha (H,W) is 0, in steps of 1/255."""
    kept = alpha == 0
    if not kept.any():
        return 0
    return int(np.abs(photo[kept].astype(np.int16) - result[kept].astype(np.int16)).max())


def seam_ratio(photo: np.ndarray, result: np.ndarray, alpha: np.ndarray, width: int) -> float | None:
    """How visible the seam is: gradients across it over those of the untouched photo beside it.

    Args:
        photo: (H,W,3) uint8.
        result: (H,W,3) uint8.
        alpha: (H,W) in [0,1].
        width: Pixels from the seam that count as beside it.

    Returns:
        About 1 where nothing shows, more for an edge, less for a blur; ``None`` if there is no seam or nothing
        beside it.
    """
    solid = (alpha >= 0.5).astype(np.uint8)
    if not solid.any() or solid.all():
        return None
    soft = (alpha > 0).astype(np.uint8)
    window = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    seam = cv2.dilate(solid, np.ones((3, 3), np.uint8)) != cv2.erode(solid, np.ones((3, 3), np.uint8))
    beside = (cv2.dilate(soft, window) > 0) & (soft == 0)
    if not seam.any() or not beside.any():
        return None
    across, usual = _gradient(result)[seam].mean(), _gradient(photo)[beside].mean()
    return float((across + 1) / (usual + 1))  # one step of 255: an even wall has no gradients to compare with


def _gradient(pixels: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    dx, dy = np.diff(grey, axis=1, append=grey[:, -1:]), np.diff(grey, axis=0, append=grey[-1:])
    return np.hypot(dx, dy)
