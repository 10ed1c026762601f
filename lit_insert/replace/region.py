"""Where in a photo work is done: components of the mask, a square around them, the hole and its soft edge."""

from dataclasses import dataclass
from typing import NewType

import cv2
import numpy as np
from PIL import Image

from lit_insert.consistency.photos import mirrored
from lit_insert.errors import InputError
from lit_insert.mask_decoder.components import keep_components
from lit_insert.replace.settings import Components

ReplaceMask = NewType("ReplaceMask", np.ndarray)
"""bool (H,W): True where something new is to be made, False where the photo stays."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; the latter two are outside."""


def as_replace_mask(mask: Image.Image, size: tuple[int, int], name: str = "mask") -> ReplaceMask:
    """A given mask picture (white is the person) at a photo's size.

    Args:
        mask: Any mode; values above one half count as white.
        size: (width, height) of the photo. A mask of another size is scaled if its aspect is the photo's.
        name: What to call it in the message.

    Raises:
        InputError: If its aspect differs from the photo's by more than 3 %.
    """
    grey = mask.convert("L")
    if grey.size != size:
        stretch = (grey.width * size[1]) / (grey.height * size[0])
        if not 1 / 1.03 <= stretch <= 1.03 and max(abs(a - b) for a, b in zip(grey.size, size, strict=True)) > 1:
            raise InputError(
                f"{name}: {grey.width}x{grey.height} pixels do not fit a photo of {size[0]}x{size[1]}; "
                "give a mask of the same aspect"
            )
        grey = grey.resize(size, Image.Resampling.BILINEAR)
    return ReplaceMask(np.asarray(grey) > 127)


def choose_components(mask: ReplaceMask, which: Components = "largest", min_area: float = 0.0) -> ReplaceMask:
    """The connected parts (8 neighbours) of a mask that are meant.

    Args:
        mask: (H,W).
        which: "all", "largest", or the number of one, 0 being the largest.
        min_area: Parts smaller than this fraction of the picture are dropped first.

    Returns:
        A mask of the same shape, empty if nothing is left or there is no part of that number.
    """
    mask = ReplaceMask(keep_components(mask, "all", min_area))
    if which == "all":
        return mask
    for _ in range(0 if which == "largest" else which):
        mask = ReplaceMask(mask & ~keep_components(mask, "largest"))
    return ReplaceMask(keep_components(mask, "largest"))


def box_of(mask: ReplaceMask) -> Box:
    """The smallest box around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def around_both(first: Box, second: Box) -> Box:
    """The smallest box around two."""
    return (
        min(first[0], second[0]),
        min(first[1], second[1]),
        max(first[2], second[2]),
        max(first[3], second[3]),
    )


def clipped(box: Box, size: tuple[int, int]) -> Box:
    """The part of a box that lies in a photo of ``size`` (width, height)."""
    return max(box[0], 0), max(box[1], 0), min(box[2], size[0]), min(box[3], size[1])


@dataclass(frozen=True)
class Region:
    """A square of a photo; what of it lies outside shows the photo mirrored at its border.

    Attributes:
        left: Column of its first pixel in the photo; may be negative.
        top: Row of its first pixel.
        side: Pixels.
        photo: (width, height) of the photo.
    """

    left: int
    top: int
    side: int
    photo: tuple[int, int]

    @classmethod
    def around(cls, box: Box, photo: tuple[int, int], scale: float | None = 1.5) -> "Region":
        """The square with a box in its middle.

        Args:
            box: What it is about.
            photo: (width, height).
            scale: Side of the square over the longer side of the box; ``None`` takes the smallest square
                around the whole photo, for models that know only whole pictures.
        """
        if scale is None:
            side = max(photo)
            return cls(-((side - photo[0]) // 2), -((side - photo[1]) // 2), side, photo)
        side = max(2, int(np.ceil(max(box[2] - box[0], box[3] - box[1]) * scale)))
        return cls((box[0] + box[2] - side) // 2, (box[1] + box[3] - side) // 2, side, photo)

    def crop(self, pixels: np.ndarray) -> np.ndarray:
        """Cut the square out of (H,W) or (H,W,C)."""
        rows = mirrored(self.top, self.side, self.photo[1]).numpy()
        columns = mirrored(self.left, self.side, self.photo[0]).numpy()
        return pixels[rows[:, None], columns[None, :]]

    def uncrop(self, square: np.ndarray, onto: np.ndarray) -> np.ndarray:
        """A copy of ``onto`` (H,W) or (H,W,C) with the square in its place; the mirrored part is dropped."""
        left, top, right, bottom = clipped(
            (self.left, self.top, self.left + self.side, self.top + self.side), self.photo
        )
        result = onto.copy()
        result[top:bottom, left:right] = square[
            top - self.top : bottom - self.top, left - self.left : right - self.left
        ]
        return result


def dig_hole(mask: ReplaceMask, grow: float = 0.03) -> tuple[ReplaceMask, np.ndarray]:
    """Grow a mask and soften its edge.

    The mask grows by discs of radius r = ``grow`` × side; the soft edge is a Gaussian with σ = r/3 cut at r, so
    that it is 1 on the mask itself, falls to one half at r and is exactly 0 beyond 2r.

    Args:
        mask: (S,S), of the region.
        grow: Fraction of the side.

    Returns:
        The hole (S,S) and alpha (S,S) float32 in [0,1].
    """
    radius = max(1, round(grow * len(mask)))
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    hole = distance <= radius if mask.any() else mask
    window = (2 * radius + 1, 2 * radius + 1)
    alpha = cv2.GaussianBlur(hole.astype(np.float32), window, radius / 3, borderType=cv2.BORDER_REFLECT_101)
    alpha[alpha < 1 / 512] = 0  # would change no pixel by a whole step
    alpha[mask | (alpha > 1 - 1 / 512)] = 1
    return ReplaceMask(hole), alpha
