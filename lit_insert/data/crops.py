"""Where the object is in its scene, whether it can serve as a reference, and its picture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from lit_insert.errors import InputError

Box = tuple[int, int, int, int]
Background = Literal["keep", "white", "grey"]
_FILL = {"white": 255, "grey": 128}


@dataclass(frozen=True)
class CropRules:
    """Which objects are used, and how their pictures are cut.

    Args:
        threshold: A mask pixel belongs to the object from this value (0..255). Masks stored as JPEG ring
            around their edges; 128 gives the exact box where "not zero" is off by several pixels.
        pad_min: Smallest margin around the box, as a fraction of its longer side.
        pad_max: Largest margin; the margin of an object is fixed by its id.
        square: Widen the picture to a square where the scene has room: CLIP's preprocessing keeps the central square
            only, and would cut the head off a standing person.
        background: Pixels outside the mask: keep them, or make them white or grey.
        min_side: Objects with a shorter side in pixels are dropped.
        min_area: Objects covering a smaller fraction of the scene are dropped.
        max_area: Objects covering a larger fraction are dropped.
        max_borders: Objects touching more of the four borders are dropped.
    """

    threshold: int = 128
    pad_min: float = 0.05
    pad_max: float = 0.10
    square: bool = True
    background: Background = "keep"
    min_side: int = 32
    min_area: float = 0.005
    max_area: float = 0.60
    max_borders: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.pad_min <= self.pad_max:
            raise InputError(f"padding {self.pad_min}..{self.pad_max}: give 0 <= smallest <= largest")
        if not 0 <= self.min_area <= self.max_area <= 1:
            raise InputError(f"area {self.min_area}..{self.max_area}: give 0 <= smallest <= largest <= 1")
        if self.background not in ("keep", *_FILL):
            raise InputError(f"background {self.background!r}: give keep, white or grey")


@dataclass(frozen=True)
class Crop:
    """An object cut out of its scene.

    Attributes:
        image: The picture, RGB.
        box: Half-open box (x0, y0, x1, y1) of the object in the scene, without margin.
        area: Fraction of the scene that the mask covers.
    """

    image: Image.Image
    box: Box
    area: float


def mask_box(present: np.ndarray) -> Box | None:
    """Half-open box (x0, y0, x1, y1) of the True pixels of an (H, W) array, None if there are none."""
    rows, columns = np.flatnonzero(present.any(1)), np.flatnonzero(present.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def fault(box: Box | None, area: float, size: tuple[int, int], rules: CropRules) -> str | None:
    """Why an object is not used, or None if it is.

    Args:
        box: From `mask_box`.
        area: Fraction of the scene that the mask covers.
        size: (width, height) of the scene.
        rules: The thresholds.

    Returns:
        "empty mask", "too small a side", "too small an area", "too large an area", "touches n borders" or
        None.
    """
    if box is None:
        return "empty mask"
    if min(box[2] - box[0], box[3] - box[1]) < rules.min_side:
        return "too small a side"
    if area < rules.min_area:
        return "too small an area"
    if area > rules.max_area:
        return "too large an area"
    borders = (box[0] <= 0) + (box[1] <= 0) + (box[2] >= size[0]) + (box[3] >= size[1])
    if borders > rules.max_borders:
        return f"touches {borders} borders"
    return None


def padded(box: Box, size: tuple[int, int], pad: float, square: bool) -> Box:
    """The box with a margin of ``pad`` times its longer side, kept within (width, height)."""
    x0, y0, x1, y1 = box
    margin = round(pad * max(x1 - x0, y1 - y0))
    x0, y0, x1, y1 = x0 - margin, y0 - margin, x1 + margin, y1 + margin
    if square:
        side = max(x1 - x0, y1 - y0)
        x0, x1 = _widen(x0, x1, side, size[0])
        y0, y1 = _widen(y0, y1, side, size[1])
    return max(0, x0), max(0, y0), min(size[0], x1), min(size[1], y1)


def _widen(low: int, high: int, side: int, limit: int) -> tuple[int, int]:
    """Grow [low, high) to ``side``, shifted into [0, limit) as far as it fits."""
    low -= (side - (high - low)) // 2
    low = max(0, min(low, limit - side))
    return low, low + side


def cut_object(
    target: Image.Image,
    mask: Image.Image,
    rules: CropRules,
    refuse: Callable[[str], Exception],
    at: float = 0.5,
) -> Crop:
    """Cut the object of ``mask`` out of ``target``.

    Args:
        target: The scene, RGB.
        mask: Mode L, any size: it is scaled to the scene first.
        rules: Thresholds and looks.
        refuse: Makes the exception to raise from the reason for dropping the object.
        at: Where the margin lies between its smallest and largest, 0..1.

    Raises:
        Exception: What ``refuse`` makes, if the rules drop the object.
    """
    if mask.size != target.size:
        mask = mask.resize(target.size, Image.Resampling.BILINEAR)
    present = np.asarray(mask) >= rules.threshold
    box, area = mask_box(present), float(present.mean())
    reason = fault(box, area, target.size, rules)
    if reason or box is None:
        raise refuse(reason or "empty mask")
    pad = rules.pad_min + (rules.pad_max - rules.pad_min) * at
    window = padded(box, target.size, pad, rules.square)
    image = target.crop(window)
    if rules.background != "keep":
        pixels = np.array(image)
        pixels[~present[window[1] : window[3], window[0] : window[2]]] = _FILL[rules.background]
        image = Image.fromarray(pixels)
    return Crop(image, box, area)
