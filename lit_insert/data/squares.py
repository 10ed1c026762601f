"""From a picture of any size to the square that a model sees: shrink by halves, then exactly, then crop."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MIN_CROP = 0.8  # a random square keeps at least this part of the shorter side


def halve(image: Image.Image, side: int) -> Image.Image:
    """Halve by averaging 2x2 pixels while the shorter side stays at least ``2 * side`` beforehand.

    Each pixel of the photo then counts as much as any other, so fine patterns do not turn into coarse ones.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


def shrink_to(image: Image.Image, side: int) -> Image.Image:
    """Bring the shorter side to ``side`` pixels, aspect kept: `halve`, then one bicubic step (which may enlarge)."""
    image = halve(image, side)
    scale = side / min(image.size)
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def _window(image: Image.Image, left: int, top: int, size: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """The middle of the picture, (size, size): nothing is squashed."""
    image = shrink_to(image, size)
    return _window(image, (image.width - size) // 2, (image.height - size) // 2, size)


def largest_side(size: int) -> int:
    """The longest shorter side that `random_square` scales to; a picture halved for it gives the same squares."""
    return math.ceil(size / MIN_CROP)


def random_square(image: Image.Image, size: int, generator: torch.Generator) -> Image.Image:
    """A random window: the shorter side is drawn from [size, size / 0.8], then the place.

    Args:
        image: RGB picture.
        size: Side of the result in pixels.
        generator: Source of all randomness; always three draws.
    """
    draw = torch.rand(3, generator=generator).tolist()
    side = size + int(draw[0] * (largest_side(size) - size + 1))
    image = shrink_to(image, side)
    left, top = (int(d * (n - size + 1)) for d, n in zip(draw[1:], image.size, strict=True))
    return _window(image, left, top, size)


def to_bytes(image: Image.Image) -> Tensor:
    """RGB picture as uint8 (3,H,W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
