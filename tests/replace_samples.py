"""Drawn photos with a person that is a red figure, and a segmenter that finds red."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw


def backdrop(size=(96, 80)):
    """A smooth, uneven background."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return Image.fromarray(np.stack([40 + x // 3, 90 + y // 2, 150 - x // 4], -1).astype(np.uint8))


def figure(size=(96, 80), box=(40, 20, 60, 64), colour=(220, 20, 30)):
    """(photo, mask) with one figure in ``box`` (right and bottom inside)."""
    photo, mask = backdrop(size), Image.new("L", size)
    ImageDraw.Draw(photo).ellipse(box, fill=colour)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return photo, mask


def sticker(size=(30, 50), colour=(20, 30, 220)):
    """A cut-out with alpha: a filled rectangle with a margin of 5."""
    picture = Image.new("RGBA", size)
    ImageDraw.Draw(picture).rectangle((5, 5, size[0] - 6, size[1] - 6), fill=(*colour, 255))
    return picture


@dataclass
class Found:
    masks: list
    presence: list


@dataclass
class FindsStrongColours:
    """A stand-in for the mask model: saturated pixels are people."""

    seen: list = field(default_factory=list)

    def __call__(self, image, *, threshold=0.5):
        self.seen.append(image.size)
        pixels = np.asarray(image.convert("RGB")).astype(int)
        mask = pixels.max(-1) - pixels.min(-1) > 150
        return Found([Image.fromarray(mask.astype(np.uint8) * 255)], [float(mask.any())])
