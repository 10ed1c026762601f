"""Pictures of any shape on a canvas of fixed size, aspect kept, and predictions back: the same in training and use."""

from typing import NamedTuple

from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F


class Frame(NamedTuple):
    """Where a picture lies on its canvas, pixels."""

    top: int
    left: int
    height: int
    width: int


def letterbox(height: int, width: int, canvas: tuple[int, int]) -> Frame:
    """The largest centred place for a picture of another shape, aspect kept.

    Args:
        height: Of the picture.
        width: Of the picture.
        canvas: (height, width).
    """
    scale = min(canvas[0] / height, canvas[1] / width)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    return Frame((canvas[0] - tall) // 2, (canvas[1] - wide) // 2, tall, wide)


def place(pixels: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Scale pixels until they fit, centre them, and fill the margins with zeros.

    Args:
        pixels: (..., h, w), float.
        canvas: (height, width).
    """
    top, left, tall, wide = letterbox(pixels.shape[-2], pixels.shape[-1], canvas)
    pixels = F.resize(pixels, [tall, wide], InterpolationMode.BILINEAR, antialias=True)
    return F.pad(pixels, [left, top, canvas[1] - left - wide, canvas[0] - top - tall])


def restore(prediction: Tensor, height: int, width: int) -> Tensor:
    """Bring a prediction on a letterboxed canvas back to the picture's own size.

    Args:
        prediction: (..., H, W) float: logits or probabilities.
        height: Of the picture before letterboxing.
        width: Of the picture before letterboxing.

    Returns:
        (..., height, width), resized bilinearly; the padding is cut off.
    """
    top, left, tall, wide = letterbox(height, width, (prediction.shape[-2], prediction.shape[-1]))
    inside = prediction[..., top : top + tall, left : left + wide]
    return F.resize(
        inside.reshape(-1, 1, tall, wide), [height, width], InterpolationMode.BILINEAR, antialias=True
    ).reshape(*prediction.shape[:-2], height, width)
