"""A photo of any size on its way to the model's working size and back, with its own detail kept."""

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lit_insert.errors import InputError
from lit_insert.images import NEUTRAL, flatten_alpha, to_tensor


@dataclass(frozen=True)
class Canvas:
    """Where a photo lies on the tensor that the model works on; all sizes are (width, height) in pixels.

    Attributes:
        photo: The photo's own size.
        content: Its size on the canvas, at the upper left; the aspect is kept to a pixel.
        size: The canvas, a multiple of the VAE factor; the rest of it repeats border pixels.
    """

    photo: tuple[int, int]
    content: tuple[int, int]
    size: tuple[int, int]


def plan_canvas(
    photo: tuple[int, int],
    resolution: int,
    multiple: int,
    height: int | None = None,
    width: int | None = None,
) -> Canvas:
    """Choose the working size of a photo.

    By default its area becomes about ``resolution``² at its own aspect, the longer side at most twice
    ``resolution``; it is padded, never squashed, to multiples of ``multiple``. With ``height`` or ``width``
    it is fitted into that box instead.

    Args:
        photo: (width, height).
        resolution: Side of the squares that the model was trained on.
        multiple: Pixels per latent cell.
        height: Height of the canvas, by default whatever the width gives.
        width: Width of the canvas, by default whatever the height gives.

    Raises:
        InputError: If ``height`` or ``width`` is no positive multiple of ``multiple``.
    """
    for name, side in (("height", height), ("width", width)):
        if side is not None and (side <= 0 or side % multiple):
            below = max(multiple, side // multiple * multiple)
            raise InputError(f"{name} {side} is not a multiple of {multiple}; use {below} or {below + multiple}")
    w, h = photo
    if height is None and width is None:
        scale = min(resolution / math.sqrt(w * h), 2 * resolution / max(w, h))
    else:
        scale = min((width or math.inf) / w, (height or math.inf) / h)
    content = (max(1, round(w * scale)), max(1, round(h * scale)))
    padded = tuple(math.ceil(side / multiple) * multiple for side in content)
    return Canvas(photo, content, (width or padded[0], height or padded[1]))


def place(photo: Image.Image, canvas: Canvas) -> Tensor:
    """The canvas with the photo on it, (3,H,W) in [-1,1]; alpha is flattened over white."""
    photo = flatten_alpha(photo)
    if photo.size != canvas.content:
        photo = photo.resize(canvas.content, Image.Resampling.LANCZOS)
    right, below = (side - used for side, used in zip(canvas.size, canvas.content, strict=True))
    pixels = to_tensor(photo)[None]
    return F.pad(pixels, (0, right, 0, below), mode="replicate")[0] if right or below else pixels[0]


def change_map(result: Tensor, reconstruction: Tensor, reach: int, threshold: float = 0.08) -> Tensor:
    """How much each pixel was changed on purpose, (B,1,H,W) in [0,1].

    Both pictures come from the same decoder, so its losses cancel and only the edit is left. The largest
    channel difference, averaged over 3x3 pixels, goes through a smooth step from ``threshold`` to twice that,
    grows by ``reach`` pixels so that no soft edge of an object is cut, and is feathered over that distance.

    Args:
        result: Decoded result, (B,3,H,W) in [-1,1].
        reconstruction: Decoded latents of the untouched scene, same shape.
        reach: Pixels to grow and feather; half a latent cell is right.
        threshold: Differences below it, in the units of the pictures, count as unchanged.
    """
    difference = (result.float() - reconstruction.float()).abs().amax(1, keepdim=True)
    difference = F.avg_pool2d(difference, 3, stride=1, padding=1, count_include_pad=False)
    step = ((difference - threshold) / threshold).clamp(0, 1)
    step = step * step * (3 - 2 * step)
    window = 2 * reach + 1
    grown = F.max_pool2d(step, window, stride=1, padding=reach)
    return F.avg_pool2d(grown, window, stride=1, padding=reach, count_include_pad=False)


def restore(result: Tensor, canvas: Canvas, photo: Image.Image, change: Tensor | None = None) -> Tensor:
    """Bring a result back to the photo's size, (3,h,w) in [-1,1].

    Args:
        result: The canvas as the model left it, (3,H,W) in [-1,1].
        canvas: Its plan.
        photo: The photo.
        change: (1,H,W) in [0,1]; where it is 0 the photo's own pixels return exactly. ``None``: the result
            everywhere.
    """
    shown = _to_photo(result.float(), canvas, "bicubic").clamp(-1, 1)
    if change is None:
        return shown
    weight = _to_photo(change.float(), canvas, "bilinear").clamp(0, 1)
    own = to_tensor(photo).to(shown.device)
    return torch.where(weight > 0, own + weight * (shown - own), own)


def _to_photo(pixels: Tensor, canvas: Canvas, mode: str) -> Tensor:
    width, height = canvas.content
    pixels = pixels[:, :height, :width]
    if canvas.content == canvas.photo:
        return pixels
    size = (canvas.photo[1], canvas.photo[0])
    return F.interpolate(pixels[None], size, mode=mode, antialias=True, align_corners=False)[0]


def reference_picture(picture: Image.Image, margin: float = 0.1) -> Image.Image:
    """The object as the image encoder should see it, RGB.

    A picture with transparent parts is cut to what is visible, with a margin, and put on a neutral square, as
    references were in training. An opaque picture stays as it is.

    Args:
        picture: Reference; only pixels with alpha above one half count as visible.
        margin: Free border on each side, as a fraction of the object's longer side.

    Raises:
        InputError: If nothing in the picture is visible.
    """
    if not picture.has_transparency_data:
        return flatten_alpha(picture)
    picture = picture.convert("RGBA")
    alpha = picture.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return flatten_alpha(picture)
    box = alpha.point(lambda a: 255 if a > 127 else 0).getbbox()
    if box is None:
        raise InputError("the object picture is wholly transparent; nothing to insert")
    longer = max(box[2] - box[0], box[3] - box[1])
    side = longer + 2 * max(1, round(longer * margin))
    left, top = (box[0] + box[2] - side) // 2, (box[1] + box[3] - side) // 2
    return flatten_alpha(picture.crop((left, top, left + side, top + side)), NEUTRAL)
