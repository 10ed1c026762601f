"""Objects cut out, brought to size in pixels (M1) or in features (M2), and how opaque they are in the feature map."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from lit_insert.errors import InputError
from lit_insert.fusion.choices import Backdrop
from lit_insert.images import as_pictures
from lit_insert.letterbox import Frame, letterbox


@dataclass(frozen=True)
class CutOut:
    """An object without its background, cropped to what is visible.

    Attributes:
        rgb: (3,h,w) in [0,1].
        alpha: (1,h,w) in [0,1].
    """

    rgb: Tensor
    alpha: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.rgb.shape[-2], self.rgb.shape[-1]


def as_scene(given: Any, name: str) -> Image.Image:
    """A scene, RGB or, where something shows through, RGBA.

    Raises:
        InputError: If it is unreadable.
    """
    picture = as_pictures(given, name, alpha=True)[0]
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    seen = picture.convert("RGBA")
    return seen if (np.asarray(seen)[..., 3] < 255).any() else picture.convert("RGB")


def cut_out(picture: Image.Image, mask: np.ndarray, name: str) -> CutOut:
    """Crop a picture to the tight box of a mask.

    Args:
        picture: Any mode.
        mask: (H,W) in [0,1]; what is not above 0.5 anywhere is empty.
        name: What to call it in messages.

    Raises:
        InputError: If the mask is empty or of another size.
    """
    if mask.shape != (picture.height, picture.width):
        raise InputError(
            f"{name}: its mask has {mask.shape[1]}x{mask.shape[0]} pixels, it has {picture.width}x{picture.height}"
        )
    solid = mask > 0.5
    if not solid.any():
        raise InputError(f"{name}: nothing was found in it (the mask is empty); give other words, or a mask")
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)[box] / 255
    alpha = np.ascontiguousarray(mask[box], dtype=np.float32)
    return CutOut(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), torch.from_numpy(alpha)[None])


def resized(cut: CutOut, size: tuple[int, int]) -> CutOut:
    """An object at another size; colours that do not show do not bleed in."""
    scale = (InterpolationMode.BICUBIC, True)
    alpha = TF.resize(cut.alpha, list(size), *scale[:1], antialias=scale[1]).clamp(0, 1)
    seen = TF.resize(cut.rgb * cut.alpha, list(size), *scale[:1], antialias=scale[1])
    return CutOut(torch.where(alpha > 1e-3, seen / alpha.clamp(min=1e-3), 0.0).clamp(0, 1), alpha)


def target_size(cut: CutOut, longer: float, room: tuple[float, float]) -> tuple[int, int]:
    """(height, width) with the longer side asked for and the aspect kept, shrunk into the room; at least a pixel.

    Args:
        cut: The object.
        longer: Pixels of the longer side.
        room: Most height and width.
    """
    factor = min(longer / max(cut.size), room[0] / cut.size[0], room[1] / cut.size[1])
    return max(1, int(cut.size[0] * factor + 1e-6)), max(1, int(cut.size[1] * factor + 1e-6))


def coverage(alpha: Tensor, cell: int) -> Tensor:
    """How much of each cell an object covers, (h,w) in cells, the object in the middle of the box.

    Args:
        alpha: (1,H,W) in pixels.
        cell: Pixels of a cell's side.
    """
    height, width = alpha.shape[-2:]
    rows, columns = -(-height // cell), -(-width // cell)
    top, left = (rows * cell - height) // 2, (columns * cell - width) // 2
    padded = F.pad(alpha[None], (left, columns * cell - width - left, top, rows * cell - height - top))
    return F.avg_pool2d(padded, cell)[0, 0]


def core_of(covered: Tensor, least: float = 0.5) -> np.ndarray:
    """Cells (h,w) bool that are the object: covered by so much or more, or else the most covered ones."""
    return (covered >= min(least, float(covered.max()))).numpy()


def opaque_alpha(core: np.ndarray, feather: int = 1) -> Tensor:
    """Weight (G,G) of an object in the feature map: 1 on all of its cells, falling to 0 outside of them.

    The feather lies outside, so that small objects stay whole.

    Args:
        core: (G,G) bool, the object's cells.
        feather: Cells over which the weight falls; 0 for a hard edge.
    """
    if not core.any():
        return torch.zeros(core.shape)
    away = cv2.distanceTransform((~core).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return torch.from_numpy(np.clip(1 - away / (feather + 1), 0, 1).astype(np.float32))


def paste(cut: CutOut, origin: tuple[int, int], onto: Tensor) -> Tensor:
    """A copy of a canvas (3,S,S) with an object at (top, left) in pixels; what sticks out is dropped."""
    top, left = origin
    height, width = cut.size
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + height, onto.shape[1]), min(left + width, onto.shape[2])
    if y1 <= y0 or x1 <= x0:
        return onto.clone()
    inner = np.s_[:, y0 - top : y1 - top, x0 - left : x1 - left]
    result = onto.clone()
    alpha = cut.alpha[inner]
    result[:, y0:y1, x0:x1] = alpha * cut.rgb[inner] + (1 - alpha) * onto[:, y0:y1, x0:x1]
    return result


def backdrop_canvas(kind: Backdrop, cut: CutOut, scene: Tensor) -> Tensor:
    """What the encoder sees around an object: the scene (3,S,S) itself, or one colour.

    Args:
        kind: "scene"; "mean", the object's mean colour; "edge", the mean along its outline; or "black".
        cut: The object.
        scene: On the canvas.
    """
    if kind == "scene":
        return scene
    if kind == "black":
        return torch.zeros_like(scene)
    weight = cut.alpha
    if kind == "edge":
        solid = (weight > 0.5).float()[None]
        inner = -F.max_pool2d(F.pad(-solid, (1, 1, 1, 1)), 3, stride=1)
        weight = (solid - inner)[0].clamp(min=0)
    colour = (cut.rgb * weight).sum((1, 2)) / weight.sum().clamp(min=1e-6)
    return colour[:, None, None].expand_as(scene).clone()


def full_canvas(cut: CutOut, side: int, background: Tensor) -> tuple[Tensor, Tensor]:
    """An object as large as fits in the middle of a canvas (M1 at scale 1), and its alpha (1,S,S)."""
    frame = letterbox(*cut.size, (side, side))
    large = resized(cut, (frame.height, frame.width))
    alpha = torch.zeros(1, side, side)
    alpha[:, frame.top : frame.top + frame.height, frame.left : frame.left + frame.width] = large.alpha
    return paste(large, (frame.top, frame.left), background), alpha


def warp(features: Tensor, scale: float) -> Tensor:
    """Features (C,G,G) shrunk about the middle by a factor (M2), bilinearly, zero outside."""
    theta = torch.tensor([[[1 / scale, 0.0, 0.0], [0.0, 1 / scale, 0.0]]])
    grid = F.affine_grid(theta, [1, *features.shape], align_corners=False)
    return F.grid_sample(features[None], grid, padding_mode="zeros", align_corners=False)[0]


def canvas_of(picture: Tensor, side: int) -> tuple[Tensor, Frame]:
    """A picture (3,h,w) letterboxed onto a square canvas (3,S,S), its border continued into the margins."""
    frame = letterbox(picture.shape[1], picture.shape[2], (side, side))
    small = TF.resize(picture, [frame.height, frame.width], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    margins = (frame.left, side - frame.left - frame.width, frame.top, side - frame.top - frame.height)
    return F.pad(small[None], margins, mode="replicate")[0], frame
