"""What fills a hole: one protocol, and the way without a model."""

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from lit_insert.errors import InputError
from lit_insert.inpainting import METHODS, continue_surround
from lit_insert.replace.region import ReplaceMask


@dataclass(frozen=True)
class FillRequest:
    """A square with a hole.

    Attributes:
        image: (S,S,3) uint8; what is under the hole does not matter.
        replace_mask: (S,S), True where something is to be made.
        start: (S,S,3) uint8, a picture to begin from in the hole; ``None`` begins from nothing.
        prompt: What is wanted, in words.
        class_label: Which class is wanted.
        seed: Of the noise.
    """

    image: np.ndarray
    replace_mask: ReplaceMask
    start: np.ndarray | None = None
    prompt: str | None = None
    class_label: int | None = None
    seed: int = 0


class Fill(Protocol):
    """Fills holes.

    Attributes:
        name: As on the command line.
        sees_paste: Whether it should see what is pasted, and fill around it; otherwise it fills the whole hole
            from the background, and the paste goes on top.
        follows: Which of "prompt", "class_label" and "start" it can use.
    """

    name: str
    sees_paste: bool
    follows: frozenset[str]

    def __call__(self, request: FillRequest) -> np.ndarray:
        """A square (S,S,3) uint8; only what is in the hole counts."""
        ...


class OpenCVFill:
    """Continues the surround into the hole, with its grain; needs no model, and smears large holes.

    Args:
        method: "telea" or "ns", see `lit_insert.inpainting.continue_surround`.
        radius: Neighbourhood in pixels at the working size.
        side: Squares larger than this are filled at this size.
        grain: Give the fill the fine noise of the surround; without it a fill looks like plastic.

    Raises:
        InputError: If the method is unknown.
    """

    name = "opencv"
    sees_paste = False
    follows: frozenset[str] = frozenset()

    def __init__(self, method: str = "telea", radius: float = 5.0, side: int = 384, grain: bool = True) -> None:
        if method not in METHODS:
            raise InputError(f"method {method!r}: OpenCV's inpainting is {' or '.join(METHODS)}")
        self.method, self.radius, self.side, self.grain = method, radius, side, grain

    def __call__(self, request: FillRequest) -> np.ndarray:
        """Fill from the background alone.

        Raises:
            InputError: If the hole leaves nothing of the surround to continue.
        """
        image, hole = request.image, request.replace_mask
        if hole.all():
            raise InputError("the person fills the whole picture, so there is nothing to continue; give a fill model")
        filled = continue_surround(image, hole, radius=self.radius, side=self.side, method=self.method)
        return _with_grain(filled, image, hole, request.seed) if self.grain else filled


def _with_grain(filled: np.ndarray, image: np.ndarray, hole: ReplaceMask, seed: int) -> np.ndarray:
    """Add grey noise as strong as that of the surround: its median absolute difference from a 3x3 median."""
    fine = image.astype(np.float32) - cv2.medianBlur(image, 3)
    spread = 1.4826 * float(np.median(np.abs(fine[~hole])))
    noise = np.random.default_rng(seed).standard_normal(hole.shape).astype(np.float32)
    grainy = np.clip(np.rint(filled + min(spread, 6.0) * noise[..., None]), 0, 255).astype(np.uint8)
    return np.where(hole[..., None], grainy, filled)
