"""A person cut out of another picture: its edge, its size and its place in the photo."""

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from lit_insert.errors import InputError
from lit_insert.replace.region import Box, Region, ReplaceMask, box_of
from lit_insert.replace.settings import Align, Fit

_MOST = 4.0  # how much larger than by height a fit by width may come out
_LONGER = 1.5  # how much longer than the person a thing that is cut off itself must be to count as a whole figure
_EDGE = 1.5 / 256  # width of the soft edge of cut-outs made by a mask, of the region's side


@dataclass(frozen=True)
class CutOut:
    """A thing with alpha, cropped to what is visible.

    Attributes:
        pixels: (H,W,4) uint8 RGBA, alpha not multiplied in.
        hard: Its alpha comes from a mask of zeros and ones, and its edge needs softening.
        cut_below: Its picture ends before it does: there is no more of it below.
        whole: A whole picture, because nothing was found in it to cut out.
    """

    pixels: np.ndarray
    hard: bool
    cut_below: bool
    whole: bool = False

    @property
    def aspect(self) -> float:
        """Height over width."""
        return self.pixels.shape[0] / self.pixels.shape[1]


def has_alpha(picture: Image.Image) -> bool:
    """Whether any pixel of a picture is not opaque."""
    return picture.has_transparency_data and bool((np.asarray(picture.convert("RGBA"))[..., 3] < 255).any())


def cut_out(picture: Image.Image, mask: ReplaceMask | None = None, name: str = "the cut-out") -> CutOut:
    """Cut a thing out by its mask, or else by the picture's own alpha.

    Colours along the edge of a mask belong half to the old background, so they are taken from just inside.

    Args:
        picture: RGB or RGBA.
        mask: (H,W), True on the thing; ``None``: alpha above one half is visible.
        name: What to call it in the message.

    Raises:
        InputError: If nothing of it is visible.
    """
    pixels = np.asarray(picture.convert("RGBA"))
    visible = pixels[..., 3] > 127 if mask is None else mask
    if not visible.any():
        raise InputError(f"{name}: nothing in it is visible; give a picture with something opaque")
    if mask is not None:
        pixels = np.dstack([_colours_from_inside(pixels[..., :3], mask), mask.astype(np.uint8) * 255])
    left, top, right, bottom = box_of(ReplaceMask(visible))
    ends = bool(visible[-2:].any()) and bottom >= len(visible) - 1
    margin = 2  # keeps faint pixels of a soft edge
    window = np.s_[max(top - margin, 0) : bottom + margin, max(left - margin, 0) : right + margin]
    return CutOut(np.ascontiguousarray(pixels[window]), mask is not None, ends)


def _colours_from_inside(rgb: np.ndarray, mask: ReplaceMask) -> np.ndarray:
    """Colours of the mask's rim and beyond replaced by the nearest ones a pixel or two inside."""
    reach = max(1.0, 0.004 * max(mask.shape))
    inside = cv2.distanceTransform(np.pad(mask, 1, mode="edge").astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1] > reach
    if not inside.any():
        return rgb
    _, nearest = cv2.distanceTransformWithLabels(
        (~inside).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    position = np.zeros(int(nearest.max()) + 1, np.int64)
    where = np.flatnonzero(inside)
    position[nearest.ravel()[where]] = where
    return rgb.reshape(-1, 3)[position[nearest]]


def place(
    thing: CutOut,
    person: ReplaceMask,
    *,
    fit: Fit = "auto",
    align: Align = "feet",
    scale: float = 1.0,
) -> Box:
    """The box of a thing in the place of a person, which may reach beyond the photo.

    Its centre of mass comes to the person's column; its lower (or upper) end to the person's.

    Args:
        thing: What is placed.
        person: (H,W) of the photo.
        fit: "height": as tall as the person. "width": as wide. "auto": by height, unless the photo cuts the
            person off below and the thing goes on or is much longer (a whole figure for a portrait): then by width
            and from the head down, at most four times what the height gives.
        align: "feet" or "head"; with "auto" as above always the head.
        scale: Factor on top.

    A whole picture is made to cover the person instead, with a tenth to spare.
    """
    left, top, right, bottom = box_of(person)
    height, width = thing.pixels.shape[:2]
    by_height, by_width = (bottom - top) / height, (right - left) / width
    factor = by_width if fit == "width" else by_height
    if thing.whole:
        factor = 1.1 * max(by_height, by_width)
    elif fit == "auto" and bottom >= len(person) - 2 and by_width > by_height * (_LONGER if thing.cut_below else 1):
        factor, align = min(by_width, _MOST * by_height), "head"
    factor *= scale
    size = max(1, round(width * factor)), max(1, round(height * factor))
    columns = np.arange(person.shape[1]) + 0.5
    middle = float((person.sum(0) * columns).sum() / person.sum())
    weight = thing.pixels[..., 3].astype(np.float64).sum(0)
    own_middle = float((weight * (np.arange(width) + 0.5)).sum() / weight.sum()) / width * size[0]
    x = round(middle - own_middle)
    y = bottom - size[1] if align == "feet" else top
    return x, y, x + size[0], y + size[1]


def render(thing: CutOut, box: Box, region: Region) -> np.ndarray:
    """The thing at its box on the canvas of a region, (S,S,4) uint8 RGBA, nothing elsewhere."""
    size = (box[2] - box[0], box[3] - box[1])
    scaled = Image.fromarray(thing.pixels).resize(size, Image.Resampling.LANCZOS)  # multiplies alpha in by itself
    canvas = Image.new("RGBA", (region.side, region.side))
    canvas.paste(scaled, (box[0] - region.left, box[1] - region.top))
    layer = np.array(canvas)
    if thing.hard:
        layer[..., 3] = _inward(layer[..., 3], _EDGE * region.side)
    return layer


def _inward(alpha: np.ndarray, width: float) -> np.ndarray:
    """Soften an edge without reaching over it: blurred, then [1/2, 1] stretched to [0, 1]."""
    soft = cv2.GaussianBlur(alpha.astype(np.float32), (0, 0), max(0.4, width / 2))
    return np.rint(np.clip(2 * soft - 255, 0, 255)).astype(np.uint8)
