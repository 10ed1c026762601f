"""Making a pasted thing look as if lit with the rest: statistics in CIE Lab."""

import cv2
import numpy as np

_GAIN = (0.6, 1.6)  # a flat reference, or a flat thing, would otherwise lose or blow up its contrast


def match_lab(
    thing: np.ndarray, thing_weight: np.ndarray, reference: np.ndarray, reference_weight: np.ndarray, strength: float
) -> np.ndarray:
    """Move mean and spread of a thing's colours towards those of a reference (Reinhard et al. 2001, in Lab).

    Args:
        thing: (H,W,3) uint8 RGB.
        thing_weight: (H,W) in [0,1], how much each pixel counts.
        reference: (h,w,3) uint8 RGB.
        reference_weight: (h,w) in [0,1].
        strength: 0 keeps the thing as it is, 1 takes the reference's statistics (the contrast changes by a factor
            of 0.6 to 1.6 at most).

    Returns:
        (H,W,3) uint8 RGB; the thing itself if ``strength`` is 0 or nothing counts on either side.
    """
    if strength == 0 or thing_weight.sum() < 1 or reference_weight.sum() < 1:
        return thing
    own, other = _lab(thing), _lab(reference)
    own_mean, own_spread = _moments(own, thing_weight)
    mean, spread = _moments(other, reference_weight)
    gain = np.clip(spread / np.maximum(own_spread, 1e-3), *_GAIN)
    matched = (own - own_mean) * gain + mean
    mixed = (own + strength * (matched - own)).astype(np.float32)
    rgb = cv2.cvtColor(mixed, cv2.COLOR_LAB2RGB)
    return np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)


def _lab(pixels: np.ndarray) -> np.ndarray:
    """Float Lab: L in [0,100], a and b about [-127,127]."""
    return cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def _moments(pixels: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weight = (weight / weight.sum())[..., None].astype(np.float64)
    mean = (pixels * weight).sum((0, 1))
    return mean, np.sqrt(((pixels - mean) ** 2 * weight).sum((0, 1)))
