"""Where an object goes: the asked region, the phrase's heat map and free space, on the grid of features.

All boxes are whole cells. A window that would stick out is shifted, never cut, and keeps its size.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_insert.errors import InputError
from lit_insert.fusion.choices import AREAS, check_area
from lit_insert.letterbox import Frame

_START, _END = ("top", "left"), ("bottom", "right")
LEAST_HEAT = 0.05


class Window(NamedTuple):
    """A box of whole cells."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to index (…,H,W) with."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


class Placement(NamedTuple):
    """Where an object goes.

    Attributes:
        window: Its box.
        overlap: Cells of it that were taken already.
        score: By which it was chosen among windows that overlap as little.
    """

    window: Window
    overlap: int
    score: float


def whole_cells(frame: Frame, cell: float) -> Window:
    """The cells of a canvas that a letterboxed picture covers by half or more; at least one each way.

    Args:
        frame: The picture's place in pixels.
        cell: Pixels of a cell's side.
    """

    def axis(start: int, length: int) -> tuple[int, int]:
        first, last = math.floor(start / cell + 0.5), math.ceil((start + length) / cell - 0.5)
        return (first, last - first) if last > first else (int((start + length / 2) // cell), 1)

    (top, height), (left, width) = axis(frame.top, frame.height), axis(frame.left, frame.width)
    return Window(top, left, height, width)


def region(area: str, valid: Window) -> Window:
    """The box of cells that an area's name stands for: a half each way, the middle half, or all."""

    def axis(part: str, start: int, length: int) -> tuple[int, int]:
        if part in _START:
            return start, math.ceil(length / 2)
        if part in _END:
            return start + length // 2, length - length // 2
        if part == "middle":
            return start + length // 4, length - 2 * (length // 4)
        return start, length

    rows, columns = AREAS[check_area(area)]
    (top, height), (left, width) = axis(rows, valid.top, valid.height), axis(columns, valid.left, valid.width)
    return Window(top, left, height, width)


def starts(size: int, inside: tuple[int, int], valid: tuple[int, int]) -> range:
    """First cells at which a window may begin, along one axis.

    A window that fits into the region lies in it; a larger one holds all of it. Both stay on the picture.

    Args:
        size: Of the window.
        inside: First cell and length of the region.
        valid: First cell and length of the picture.

    Raises:
        InputError: If the window is larger than the picture.
    """
    if size > valid[1]:
        raise InputError(f"the object takes {size} cells, the picture has {valid[1]}; give a smaller scale")
    first, last = inside[0], inside[0] + inside[1] - size
    low, high = (first, last) if size <= inside[1] else (last, first)
    return range(max(low, valid[0]), min(high, valid[0] + valid[1] - size) + 1)


def place(
    core: np.ndarray,
    area: str,
    valid: Window,
    *,
    heat: np.ndarray | None = None,
    occupied: np.ndarray | None = None,
) -> Placement:
    """The best window of an area: overlapping least what is taken, then hottest or, without heat, best aligned.

    Args:
        core: (h,w) bool, the object's cells; its shape is the window's.
        area: One of `AREAS`.
        valid: Cells of the picture.
        heat: (G,G) in [0,1], where the phrase is. None, or nowhere above 0.05: the area's corner or middle is taken.
        occupied: (G,G) bool, cells that are taken.

    Raises:
        InputError: If the area is unknown or the object larger than the picture.
    """
    height, width = core.shape
    inside = region(area, valid)
    tops = starts(height, (inside.top, inside.height), (valid.top, valid.height))
    lefts = starts(width, (inside.left, inside.width), (valid.left, valid.width))
    if occupied is None:
        occupied = np.zeros((valid.top + valid.height, valid.left + valid.width), bool)
    overlap = _overlaps(core, occupied)[tops.start : tops.stop, lefts.start : lefts.stop]
    if heat is not None and heat.max() >= LEAST_HEAT:
        score = _heat_at_centres(heat, height, width)[tops.start : tops.stop, lefts.start : lefts.stop]
    else:
        rows, columns = AREAS[area]
        away_y = np.array(tops) - _aligned(rows, height, valid.top, valid.height)
        away_x = np.array(lefts) - _aligned(columns, width, valid.left, valid.width)
        score = -(away_y[:, None] ** 2 + away_x[None] ** 2)
    best = np.lexsort((-score.ravel(), overlap.ravel()))[0]
    y, x = np.unravel_index(best, score.shape)
    window = Window(tops[int(y)], lefts[int(x)], height, width)
    return Placement(window, int(overlap[y, x]), float(score[y, x]))


def _aligned(part: str, size: int, start: int, length: int) -> float:
    if part in _START:
        return start
    return start + length - size if part in _END else start + (length - size) / 2


def _overlaps(core: np.ndarray, occupied: np.ndarray) -> np.ndarray:
    """Cells of an object that are taken already, for a window at every cell."""
    kernel, field = (torch.from_numpy(a.astype(np.float32))[None, None] for a in (core, occupied))
    return F.conv2d(field, kernel)[0, 0].round().long().numpy()


def _heat_at_centres(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """Heat at the middle of a window at every cell, smoothed to the window's size."""
    smooth = cv2.GaussianBlur(
        heat.astype(np.float32),
        (0, 0),
        sigmaX=max(1.0, width / 4),
        sigmaY=max(1.0, height / 4),
        borderType=cv2.BORDER_CONSTANT,
    )
    rows, columns = heat.shape[0] - height + 1, heat.shape[1] - width + 1
    y0, x0 = (height - 1) // 2, (width - 1) // 2
    y1, x1 = height // 2, width // 2
    corners = [smooth[y : y + rows, x : x + columns] for y in (y0, y1) for x in (x0, x1)]
    return np.mean(corners, axis=0)


def adaptive_scale(
    heat: np.ndarray | None, *, gamma: float = 0.5, eta: float = 0.9, low: float = 0.2, high: float = 0.8
) -> float:
    """Size that suits the room there is: clip(η·r^γ, low, high), with r the fraction of the picture hotter than 0.1.

    Args:
        heat: Of the phrase, over the picture. None, or r below 1e-5, gives 0.5.
        gamma: γ.
        eta: η.
        low: Smallest.
        high: Largest.
    """
    share = float((heat > 0.1).mean()) if heat is not None else 0.0
    return float(np.clip(eta * share**gamma, low, high)) if share >= 1e-5 else 0.5


def candidates(
    first: Window,
    area: str,
    valid: Window,
    generator: torch.Generator,
    *,
    count: int = 12,
    jitter: float = 0.12,
) -> list[Window]:
    """A window and others near it, each once and within the area, drawn from the generator alone.

    Args:
        first: The window that was found; comes first.
        area: One of `AREAS`.
        valid: Cells of the picture.
        generator: Draws the offsets.
        count: How many are drawn.
        jitter: Largest offset, as a fraction of the picture's longer side.
    """
    inside, reach = region(area, valid), jitter * max(valid.height, valid.width)
    tops = starts(first.height, (inside.top, inside.height), (valid.top, valid.height))
    lefts = starts(first.width, (inside.left, inside.width), (valid.left, valid.width))
    offsets = ((torch.rand(count, 2, generator=generator) * 2 - 1) * reach).round().int().tolist()
    found = dict.fromkeys([first])
    for dy, dx in offsets:
        top = min(max(first.top + dy, tops[0]), tops[-1])
        left = min(max(first.left + dx, lefts[0]), lefts[-1])
        found[Window(top, left, first.height, first.width)] = None
    return list(found)


def rerank(
    windows: Sequence[Any],
    picture: Callable[[Any], Tensor],
    scorer: Callable[[Tensor], float],
    overlap: Callable[[Any], float],
    penalty: float,
) -> tuple[Any, list[float]]:
    """The candidate whose picture fits the words best, overlap counted against it.

    Args:
        windows: Candidates; of equals the first is taken.
        picture: Makes the picture (3,H,W) in [0,1] of a candidate.
        scorer: How well a picture fits, such as CLIP's cosine.
        overlap: Mean product of the object's alpha and what is taken, over the grid.
        penalty: λ.

    Returns:
        The best, and the scores of all.
    """
    scores = [scorer(picture(w)) - penalty * overlap(w) for w in windows]
    return windows[max(range(len(scores)), key=lambda i: (scores[i], -i))], scores
