"""Hats and sunglasses: pictures with transparency that are put on faces."""

import hashlib
import math
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from lit_insert.data.faces.detection import Face, usual_eyes
from lit_insert.data.faces.drawn import draw_hat, draw_sunglasses
from lit_insert.errors import InputError
from lit_insert.images import load_image

Kind = Literal["hat", "sunglasses"]
# Width in distances between the eyes, and where the middle between the eyes comes to lie in the sprite (in its width
# from the left, in its height from the top; a hat's is below it).
_WORN = {"hat": (3.1, 0.54, 1.0), "sunglasses": (2.3, 0.5, 0.42)}
_HAT_LIFT = 0.48  # the hat's lower edge above the eyes, in distances between them
_WHITE = 244  # from here on, in all channels, a pixel belongs to a white matte
_NEARLY = 12  # alpha below this is no part of the sprite


class Sprite:
    """A thing to put on a face, cut to what is visible of it.

    A picture without transparency has its white surround (what is connected to its border) taken for transparent,
    with a soft edge. Partly transparent edge pixels that were blended with white before saving get their own colour
    back.

    Args:
        path: PNG or WebP, best with transparency; or "drawn" for a plain one.
        kind: How it is worn.

    Raises:
        InputError: If the file is no picture or nothing of it is visible.
    """

    def __init__(self, path: str | Path, kind: Kind) -> None:
        self.path, self.kind = Path(path), kind
        if str(path) == "drawn":
            image = draw_hat() if kind == "hat" else draw_sunglasses()
        else:
            image = load_image(self.path, mode="RGBA")
        pixels = np.array(image)
        if pixels[..., 3].min() == 255:
            pixels = _cut_from_white(pixels)
        pixels = _without_fringe(pixels)
        rows, columns = (np.flatnonzero((pixels[..., 3] >= _NEARLY).any(axis)) for axis in (1, 0))
        if not len(rows):
            raise InputError(f"{self.path}: nothing of it is visible; give a picture with an opaque thing on it")
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        self.image = Image.fromarray(pixels).crop(box)

    @property
    def name(self) -> str:
        """Kind and content: another name means that folders have to be made anew."""
        return f"{self.kind} {hashlib.blake2b(self.image.tobytes(), digest_size=8).hexdigest()}"

    def put_on(self, image: Image.Image, face: Face) -> Image.Image:
        """A copy of an RGB picture in which the face wears this.

        Scaled by the distance between the eyes and turned with them, aspect kept; where the eyes were not found, they
        are taken to be at their usual places in the box. What reaches over the border is cut off.
        """
        left, right = face.eyes or usual_eyes(face.box)
        apart = math.dist(left, right)
        angle = math.atan2(right[1] - left[1], right[0] - left[0])
        width, at_x, at_y = _WORN[self.kind]
        scale = width * apart / self.image.width
        size = (max(1, round(self.image.width * scale)), max(1, round(self.image.height * scale)))
        worn = self.image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        # From the sprite's centre to its anchor, turned like the sprite, then up along the face for a hat.
        lift = _HAT_LIFT * apart if self.kind == "hat" else 0.0
        dx, dy = (at_x - 0.5) * size[0], (at_y - 0.5) * size[1] + lift
        cos, sin = math.cos(angle), math.sin(angle)
        middle = ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2)
        centre = (middle[0] - (cos * dx - sin * dy), middle[1] - (sin * dx + cos * dy))
        worn = worn.rotate(-math.degrees(angle), Image.Resampling.BICUBIC, expand=True)
        corner = (round(centre[0] - worn.width / 2), round(centre[1] - worn.height / 2))
        dressed = image.copy()
        dressed.paste(worn, corner, worn)
        return dressed


def _cut_from_white(pixels: np.ndarray) -> np.ndarray:
    """Make the white that touches the border transparent; edges get alpha by how white they are."""
    import cv2

    white = (pixels[..., :3].min(-1) >= _WHITE).astype(np.uint8)
    _, labels = cv2.connectedComponents(white, connectivity=4)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    outside = np.isin(labels, np.unique(border[border > 0]))
    near = cv2.dilate(outside.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~outside
    alpha = np.where(outside, 0, 255).astype(np.uint8)
    darkness = (255 - pixels[..., :3].min(-1).astype(np.int64)) * 2
    alpha[near] = np.clip(darkness, 64, 255)[near].astype(np.uint8)
    cut = pixels.copy()
    cut[..., 3] = alpha
    return cut


def _without_fringe(pixels: np.ndarray) -> np.ndarray:
    """Undo blending with white in partly transparent pixels, where it happened.

    A pixel of colour c and opacity a that was blended is a*c + (1-a)*255. It happened if such pixels are, on the
    whole, whiter than their opaque neighbours by about that much; thin edges of a thing that is white itself, or was
    never blended, stay as they are.
    """
    import cv2

    alpha = pixels[..., 3].astype(np.float32) / 255
    edge = (alpha > 0.1) & (alpha < 0.95)
    solid = alpha >= 0.95
    if not edge.any() or not solid.any():
        return pixels
    colour = pixels[..., :3].astype(np.float32)
    weight = cv2.blur(solid.astype(np.float32), (7, 7))
    inner = cv2.blur(colour * solid[..., None], (7, 7)) / np.maximum(weight, 1e-6)[..., None]
    known = edge & (weight > 0)
    blended = alpha[..., None] * inner + (1 - alpha[..., None]) * 255
    if not known.any() or np.abs(colour - blended)[known].mean() >= np.abs(colour - inner)[known].mean():
        return pixels
    clean = pixels.copy()
    own = (colour - (1 - alpha[..., None]) * 255) / np.maximum(alpha, 0.1)[..., None]
    clean[..., :3][edge] = np.clip(own, 0, 255).round().astype(np.uint8)[edge]
    return clean
