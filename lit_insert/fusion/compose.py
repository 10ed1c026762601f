"""Objects into the scene's feature map, and the decoded result back into the photo."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from lit_insert.blending import blend
from lit_insert.errors import InputError
from lit_insert.fusion.choices import OVERLAPS, Overlap
from lit_insert.letterbox import Frame, letterbox, restore

TAKEN = 0.2  # an object's weight above which a cell counts as taken


class Layer(NamedTuple):
    """An object in the feature map.

    Attributes:
        features: (C,G,G), the object's features at its place.
        alpha: (G,G) in [0,1], its weight.
        opacity: Factor on the weight.
    """

    features: Tensor
    alpha: Tensor
    opacity: float = 1.0


class Fused(NamedTuple):
    """A scene with objects in it.

    Attributes:
        features: (C,G,G).
        union: (G,G), how much of a cell is new: 1 - Π(1 - m).
        occupied: (G,G), the sum of the objects' weights, at most 1.
    """

    features: Tensor
    union: Tensor
    occupied: Tensor


def weight(layer: Layer, occupied: Tensor, mode: Overlap) -> Tensor:
    """The weight m (G,G) of the next object, given what is taken.

    Args:
        layer: The object.
        occupied: (G,G).
        mode: "allow" paints over what is there; "no_overwrite" leaves cells alone that are taken; "alpha" halves the
            weight where they are.

    Raises:
        InputError: If the mode is unknown.
    """
    m = (layer.opacity * layer.alpha).clamp(0, 1)
    if mode == "no_overwrite":
        return m * (occupied <= TAKEN)
    if mode == "alpha":
        return m * (1 - 0.5 * occupied)
    if mode != "allow":
        raise InputError(f"overlap_mode {mode!r}: unknown; give {', '.join(OVERLAPS)}")
    return m


def add_layer(scene: Fused, layer: Layer, mode: Overlap = "allow") -> Fused:
    """Fuse one object: z <- m·z_obj + (1-m)·z, exactly z where m is 0 and exactly z_obj where it is 1."""
    m = weight(layer, scene.occupied, mode)
    mixed = m * layer.features + (1 - m) * scene.features
    features = torch.where(m <= 0, scene.features, torch.where(m >= 1, layer.features, mixed))
    return Fused(features, 1 - (1 - scene.union) * (1 - m), (scene.occupied + m).clamp(max=1))


def fuse(base: Tensor, layers: Sequence[Layer], mode: Overlap = "allow") -> Fused:
    """Fuse objects, the first one lowest.

    Args:
        base: The scene's features (C,G,G).
        layers: Objects in the order in which they are painted.
        mode: See `weight`.
    """
    nothing = torch.zeros(base.shape[-2:])
    scene = Fused(base, nothing, nothing)
    for layer in layers:
        scene = add_layer(scene, layer, mode)
    return scene


def changing_cells(union: Tensor, grow: int = 0) -> Tensor:
    """Cells (G,G) bool that the flow may change: those with something new, and ``grow`` cells around them."""
    new: np.ndarray = (union > 0).numpy().astype(np.uint8)
    if grow:
        new = cv2.dilate(new, np.ones((2 * grow + 1, 2 * grow + 1), np.uint8))
    return torch.from_numpy(new.astype(bool))


@dataclass(frozen=True)
class Composite:
    """How a decoded canvas goes back into the photo.

    Attributes:
        frame: Where the photo lies on the encoder's canvas, pixels.
        side: Of that canvas.
        cells: (G,G) bool, cells that may change.
        objects: (S,S) in [0,1], the objects' own pixels on that canvas.
        feather: Cells over which the result fades into the photo, within those that may change.
    """

    frame: Frame
    side: int
    cells: Tensor
    objects: Tensor
    feather: float = 0.5

    def to_photo(self, canvas: Tensor, height: int, width: int) -> np.ndarray:
        """A canvas (C,P,P), bilinearly, at the photo's place and size."""
        if self.frame == letterbox(height, width, (self.side, self.side)):
            return restore(canvas, height, width).numpy()
        # Squashed onto the whole of the canvas, as the original program does.
        return F.resize(canvas, [height, width], InterpolationMode.BILINEAR, antialias=True).numpy()

    def alpha(self, height: int, width: int) -> np.ndarray:
        """Weight (H,W) of the result: exactly 0 outside the cells that may change, 1 half a cell inside of them."""
        cell = self.side // len(self.cells)
        inside = self.cells.numpy().repeat(cell, 0).repeat(cell, 1)
        top, left, tall, wide = self.frame
        window: np.ndarray = inside[top : top + tall, left : left + wide].astype(np.uint8)
        window = cv2.resize(window, (width, height), interpolation=cv2.INTER_NEAREST)
        if not window.any():
            return np.zeros((height, width), np.float32)
        # The photo's own border is no seam.
        padded = cv2.copyMakeBorder(window, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
        if padded.all():
            return np.ones((height, width), np.float32)
        away = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        reach = max(1.0, self.feather * cell * max(height / tall, width / wide))
        return np.clip(away / (reach + 1), 0, 1).astype(np.float32)

    def photo(self, picture: np.ndarray, result: Tensor, base: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The photo with the result in it.

        Where the objects are, the decoded result itself is taken; around them, what the flow has changed is added to
        the photo, so that what the autoencoder loses of the photo is not lost.

        Args:
            picture: (H,W,3) or, with alpha, (H,W,4), uint8.
            result: Decoded result (3,P,P) in [0,1].
            base: The scene, decoded without objects, (3,P,P).

        Returns:
            The picture, same shape, with its very bytes where the weight is 0; and the weight (H,W).
        """
        height, width = picture.shape[:2]
        made = self.to_photo(result.clamp(0, 1), height, width).transpose(1, 2, 0) * 255
        plain = self.to_photo(base.clamp(0, 1), height, width).transpose(1, 2, 0) * 255
        objects = self.to_photo(self.objects[None], height, width)[0][..., None].clip(0, 1)
        kept = made + (1 - objects) * (picture[..., :3].astype(np.float32) - plain)
        alpha = self.alpha(height, width)
        mixed = blend(picture[..., :3], np.rint(kept.clip(0, 255)).astype(np.uint8), alpha)
        if picture.shape[2] == 4:
            seen = np.maximum(picture[..., 3], np.rint(alpha * 255).astype(np.uint8))
            mixed = np.concatenate([mixed, seen[..., None]], axis=2)
        return mixed, alpha
