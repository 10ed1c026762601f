"""A photo of any size on its way to the model's square and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lit_insert.errors import InputError
from lit_insert.images import load_image


@dataclass(frozen=True)
class Square:
    """A square of a photo that the model works on; where it sticks out, the photo is mirrored.

    Attributes:
        left: First column, below 0 if the square sticks out.
        top: First row.
        side: Pixels of the photo along its side.
        photo: (height, width) of the photo.
    """

    left: int
    top: int
    side: int
    photo: tuple[int, int]

    @property
    def visible(self) -> tuple[slice, slice]:
        """Rows and columns of the photo that lie in the square."""
        height, width = self.photo
        return (
            slice(max(self.top, 0), min(self.top + self.side, height)),
            slice(max(self.left, 0), min(self.left + self.side, width)),
        )

    def take(self, photo: Tensor, size: int) -> Tensor:
        """The square (C,size,size) of a photo (C,H,W), smoothly resampled."""
        cut = self._cut(photo)
        if self.side == size:
            return cut
        mode = "area" if self.side % size == 0 else "bicubic"
        options = {} if mode == "area" else {"antialias": True, "align_corners": False}
        return F.interpolate(cut[None], (size, size), mode=mode, **options)[0].clamp(-1, 1)

    def take_mask(self, mask: Tensor, size: int) -> Tensor:
        """The square (1,size,size) of a mask (1,H,W) in {0,1}: 1 wherever any of its pixels is."""
        return (F.interpolate(self._cut(mask)[None], (size, size), mode="area")[0] > 0).to(mask)

    def put(self, made: Tensor) -> Tensor:
        """A made square (C,size,size) at the photo's scale: the pixels (C,h,w) of `visible`."""
        if made.shape[-1] != self.side:
            size = (self.side, self.side)
            made = F.interpolate(made[None], size, mode="bicubic", antialias=True, align_corners=False)[0]
            made = made.clamp(-1, 1)
        rows, columns = self.visible
        return made[
            :,
            rows.start - self.top : rows.stop - self.top,
            columns.start - self.left : columns.stop - self.left,
        ]

    def crop(self, made: Tensor) -> Tensor:
        """The part of a made square (C,size,size) that shows the photo, at the made scale."""
        scale = made.shape[-1] / self.side
        rows, columns = self.visible
        top, bottom = (round((r - self.top) * scale) for r in (rows.start, rows.stop))
        left, right = (round((c - self.left) * scale) for c in (columns.start, columns.stop))
        return made[:, top : max(bottom, top + 1), left : max(right, left + 1)]

    def _cut(self, pixels: Tensor) -> Tensor:
        rows = mirrored(self.top, self.side, self.photo[0]).to(pixels.device)
        columns = mirrored(self.left, self.side, self.photo[1]).to(pixels.device)
        return pixels[:, rows][:, :, columns]


def whole(photo: Tensor, at_least: int = 1) -> Square:
    """The smallest square, of ``at_least`` pixels, with all of a photo (C,H,W) in its middle."""
    height, width = photo.shape[-2:]
    side = max(height, width, at_least)
    return Square(-((side - width) // 2), -((side - height) // 2), side, (height, width))


def around(mask: Tensor, size: int, margin: float = 1.5) -> Square:
    """The square around a mask's white pixels with room for the surround.

    Args:
        mask: (1,H,W) in {0,1}, not empty.
        size: The model's side; the square is no smaller, so that nothing is enlarged without need.
        margin: Its side in sides of the mask's box; it never exceeds the photo's longer side.
    """
    height, width = mask.shape[-2:]
    rows, columns = (torch.nonzero(mask[0].amax(axis)).flatten() for axis in (1, 0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    side = max(round(margin * max(bottom - top, right - left)), size)
    if side >= max(height, width):
        return whole(mask)
    return Square(_slid(left + right, side, width), _slid(top + bottom, side, height), side, (height, width))


def _slid(double_centre: int, side: int, length: int) -> int:
    """Where a window begins: centred, but slid inside the photo as far as it fits."""
    begin = (double_centre - side) // 2
    return -((side - length) // 2) if side > length else min(max(begin, 0), length - side)


def mirrored(start: int, count: int, length: int) -> Tensor:
    """Indices into ``length`` pixels of ``count`` positions from ``start`` on, reflected at the borders."""
    if length == 1:
        return torch.zeros(count, dtype=torch.int64)
    period = 2 * (length - 1)
    position = torch.arange(start, start + count) % period
    return torch.where(position < length, position, period - position)


def as_masks(given: Any) -> list[Tensor]:
    """Masks in whatever form, as (1,H,W) float32 in {0,1}, split at one half; 1 (white) = generate.

    Args:
        given: A PIL picture, a path, an array or tensor (H,W) or (1,H,W) or (N,1,H,W) in [0,1] or bool, or a
            sequence of these.

    Raises:
        InputError: If one is none of these, or its file is unreadable.
    """
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [mask for item in given for mask in as_masks(item)]
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(np.ascontiguousarray(given))
    if isinstance(given, Tensor):
        values = given.float()
        if values.ndim == 2:
            values = values[None]
        if values.ndim not in (3, 4) or values.shape[-3] != 1 or not 0 <= values.min() <= values.max() <= 1:
            raise InputError(
                f"mask: a tensor must be (H,W), (1,H,W) or (N,1,H,W) in [0,1], not {tuple(given.shape)} in "
                f"[{float(values.min()):g},{float(values.max()):g}]"
            )
        return [(m >= 0.5).float().cpu() for m in (values if values.ndim == 4 else values[None])]
    if not isinstance(given, Image.Image):
        given = load_image(given, mode="L")
    pixels = np.array(given.convert("L"))
    return [torch.from_numpy(pixels >= 128).float()[None]]
