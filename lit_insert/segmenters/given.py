"""Masks that were made before, from files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from lit_insert.errors import InputError
from lit_insert.images import Picture, list_images, load_image
from lit_insert.segmenters.base import Features, Instance, Instances, best_first, check_request, upright

if TYPE_CHECKING:
    from PIL import Image


class GivenSegmenter:
    """Masks from a folder, behind the protocol of `lit_insert.segmenters.base.Segmenter`.

    A file is called after its prompt, spaces as such or as ``_`` or ``-``; several things of one prompt have a number
    after it: ``red_circle.png``, or ``red_circle_1.png`` and ``red_circle_2.png``. Masks of a certain picture stand in
    a subfolder of the picture's name without suffix. Grey is probability: black 0, white 1.

    Args:
        folder: The folder.

    Raises:
        InputError: If there is no such folder.
    """

    name = "given"

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{folder}: no such folder; the segmenter 'given' reads its masks from one")

    def to(self, device: str | torch.device) -> Self:
        """Nothing to move."""
        return self

    def encode(self, image: Picture, name: str | None = None) -> Features:
        """Note which folder the masks of a picture stand in."""
        picture = upright(image)
        own = self.folder / name if name else self.folder
        return Features((picture.height, picture.width), own if own.is_dir() else self.folder)

    def _masks(self, features: Features, prompt: str) -> list[np.ndarray]:
        """A prompt's masks as uint8 (H,W), in order of their numbers."""
        found = {}
        for path in list_images(features.data):
            words, _, number = _slug(path.stem).rpartition(" ")
            if _slug(path.stem) == _slug(prompt):
                found[-1] = path
            elif words == _slug(prompt) and number.isdecimal():
                found[int(number)] = path
        return [_read(found[k], features.size) for k in sorted(found)]

    def heatmaps(self, image: Picture | Features, prompts: Sequence[str]) -> Tensor:
        """The brightest of each prompt's masks; 0 where there is none.

        Raises:
            InputError: If a mask is not of the picture's size.
        """
        features = image if isinstance(image, Features) else self.encode(image)
        maps = torch.zeros(len(prompts), *features.size)
        for i, prompt in enumerate(check_request(prompts)):
            for mask in self._masks(features, prompt):
                maps[i] = torch.maximum(maps[i], torch.from_numpy(mask / np.float32(255)))
        return maps

    def instances(
        self,
        image: Picture | Features,
        prompts: Sequence[str],
        *,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        max_instances: int = 100,
    ) -> list[Instances]:
        """One instance a file; its score is its brightest pixel.

        Raises:
            InputError: If a mask is not of the picture's size.
        """
        prompts = check_request(prompts, threshold, mask_threshold, max_instances)
        features = image if isinstance(image, Features) else self.encode(image)
        found = []
        for prompt in prompts:
            masks = self._masks(features, prompt)
            scores = [float(mask.max(initial=0)) / 255 for mask in masks]
            things = [
                Instance.from_mask(mask / 255 > mask_threshold, score)
                for mask, score in zip(masks, scores, strict=True)
                if score > threshold
            ]
            found.append(Instances(prompt, max(scores, default=0.0), best_first(things, max_instances)))
        return found


def _slug(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())


def _read(path: Path, size: tuple[int, int]) -> np.ndarray:
    mask: Image.Image = load_image(path, mode="L")
    if (mask.height, mask.width) != size:
        raise InputError(f"{path}: {mask.width}x{mask.height} pixels, but its picture has {size[1]}x{size[0]}")
    return np.asarray(mask)
