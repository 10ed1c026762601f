"""The insertion triplet: scene without the object, picture of the object, scene with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from PIL import Image
from torch import Tensor


@dataclass
class Triplet:
    """One triplet as it is stored, before any resizing.

    Attributes:
        source: The scene without the object, RGB.
        target: The scene with the object, RGB.
        object: Picture of the object, RGB; a crop of the target unless the data says otherwise.
        mask: Where the object is in the target, mode L, set from 128.
        instruction: What to do in words; may be empty.
        id: Unique name within its dataset.
    """

    source: Image.Image
    target: Image.Image
    object: Image.Image
    mask: Image.Image
    instruction: str
    id: str


class TripletSample(TypedDict):
    """One triplet as tensors: the `PipeTripletBatch` without its first dimension."""

    source: Tensor
    target: Tensor
    object: Tensor
    mask: Tensor
    instruction: str
    id: str


class PipeTripletBatch(TypedDict):
    """N triplets as a module meets them.

    Keys:
        source: Scene without the object, float32 (N,3,H,W) in [-1,1].
        target: Scene with the object, float32 (N,3,H,W) in [-1,1].
        object: Picture of the object, float32 (N,3,S,S), normalised by the CLIP image processor.
        mask: Where the object is, float32 (N,1,H,W) in {0,1}.
        instruction: N strings, possibly empty.
        id: N strings that name the samples.
    """

    source: Tensor
    target: Tensor
    object: Tensor
    mask: Tensor
    instruction: list[str]
    id: list[str]


def collate_triplets(samples: Sequence[TripletSample]) -> PipeTripletBatch:
    """Stack samples of equal size; strings become lists."""
    return {
        "source": torch.stack([s["source"] for s in samples]),
        "target": torch.stack([s["target"] for s in samples]),
        "object": torch.stack([s["object"] for s in samples]),
        "mask": torch.stack([s["mask"] for s in samples]),
        "instruction": [s["instruction"] for s in samples],
        "id": [s["id"] for s in samples],
    }
