"""A folder with one picture and a mask for each of its instances."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from lit_insert.data.loading import BrokenSample
from lit_insert.data.mask_folder import read_mask
from lit_insert.errors import InputError
from lit_insert.images import IMAGE_SUFFIXES, load_image
from lit_insert.letterbox import place

_MASK = re.compile(r"mask(\d+)\.png")
_SAME, _SOME, _TINY = 0.5, 0.005, 0.02


@dataclass
class Instances:
    """A picture and its instances as files have them.

    Attributes:
        image: RGB, upright.
        masks: uint8 (K,H,W) in {0,1}, in the picture's size.
        warnings: What is odd but usable, a line each.
    """

    image: Image.Image
    masks: np.ndarray
    warnings: list[str]


def read_instances(folder: str | Path) -> Instances:
    """Read ``img.jpg`` (or ``.png``) and ``mask0.png``, ``mask1.png``, … in the order of their numbers.

    Args:
        folder: Where they are.

    Raises:
        InputError: If the picture is missing or there are two, there is no mask, a number is left out, a mask is
            unreadable, empty or of another size than the picture, or two masks show the same thing.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one with img.jpg, mask0.png, mask1.png, …")
    pictures = [p for name in ("img.jpg", "img.jpeg", "img.png") if (p := folder / name).is_file()]
    if len(pictures) != 1:
        found = "no img.jpg or img.png" if not pictures else f"both {pictures[0].name} and {pictures[1].name}"
        raise InputError(f"{folder}: has {found}; one picture is needed")
    image = load_image(pictures[0])
    numbered = {int(m[1]): p for p in folder.iterdir() if (m := _MASK.fullmatch(p.name))}
    if not numbered:
        raise InputError(f"{folder}: has no mask0.png; give a mask for each instance, mask0.png, mask1.png, …")
    gap = next((i for i in range(len(numbered)) if i not in numbered), None)
    if gap is not None:
        raise InputError(
            f"{folder}: mask{gap}.png is missing, but there is mask{max(numbered)}.png; number without gaps"
        )
    masks = np.stack([_read(numbered[i], image.size) for i in range(len(numbered))])
    return Instances(image, masks, _odd(folder, masks))


def _read(path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        mask = read_mask(path)
    except BrokenSample as error:
        raise InputError(str(error)) from error
    if mask.shape[::-1] != size:
        have = f"{mask.shape[1]}x{mask.shape[0]}"
        raise InputError(f"{path}: is {have} pixels, the picture {size[0]}x{size[1]}; make them the same size")
    if not mask.any():
        raise InputError(f"{path}: is empty; paint the instance white on black")
    return mask


def _odd(folder: Path, masks: np.ndarray) -> list[str]:
    """Warnings on tiny and overlapping masks; those of the same thing are refused."""
    areas = masks.sum((1, 2))
    warnings = [
        f"{folder / f'mask{i}.png'}: covers {area / masks[0].size:.1%} of the picture, a few cells of the attention; "
        "crop the picture closer"
        for i, area in enumerate(areas)
        if area < _TINY * masks[0].size
    ]
    for i in range(len(masks)):
        for k in range(i):
            shared = int((masks[i] & masks[k]).sum()) / int(min(areas[i], areas[k]))
            pair = f"{folder}: mask{k}.png and mask{i}.png share {shared:.0%} of the smaller one"
            if shared > _SAME:
                raise InputError(f"{pair}; each instance needs pixels of its own")
            if shared > _SOME:
                warnings.append(f"{pair}; what they share teaches both words")
    return warnings


def square(image: Tensor, masks: Tensor, size: int, fit: Literal["crop", "pad"]) -> tuple[Tensor, Tensor]:
    """Bring a picture and its masks to a square, aspect kept.

    Args:
        image: (3,H,W) in [-1,1].
        masks: (K,H,W) in {0,1}.
        size: Side of the square, pixels.
        fit: "crop" cuts the longer side, where the instances lose least; "pad" adds grey margins.

    Returns:
        The picture (3,size,size) and the masks (K,1,size,size).
    """
    height, width = image.shape[-2:]
    if fit == "pad":
        return place(image, (size, size)), (place(masks[:, None].float(), (size, size)) >= 0.5).float()
    side = min(height, width)
    weight = masks.flatten(1).sum(1).clamp(min=1)[:, None]
    lines = (masks.sum(1) if width > height else masks.sum(2)) / weight  # share of each instance in a column or row
    kept = torch.nn.functional.pad(lines.cumsum(1), (1, 0))
    kept = (kept[:, side:] - kept[:, : kept.shape[1] - side]).amin(0)
    best = (kept >= kept.max() - 1e-4).nonzero()[:, 0]
    start = int(best[(best - (len(kept) - 1) / 2).abs().argmin()])  # of the equally good ones, the most central
    top, left = (0, start) if width > height else (start, 0)
    area = [top, left, side, side, [size, size]]
    picture = F.resized_crop(image, *area, InterpolationMode.BILINEAR, antialias=True)
    return picture, F.resized_crop(masks[:, None].float(), *area, InterpolationMode.NEAREST)


def class_pictures(folder: Path) -> list[Path]:
    """Pictures of a folder of class pictures, sorted; none if there is no such folder."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) if folder.is_dir() else []
