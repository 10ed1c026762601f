"""What pictures with masks come from: the one interface of folders, COCO files and procedural scenes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from lit_insert.data.mask_check import MaskReport

IGNORE = 255  # in a mask: neither object nor background, left out of losses and metrics


@dataclass(frozen=True)
class MaskedPicture:
    """A picture with the mask of its object, upright and of equal size.

    Attributes:
        image: uint8 (3,H,W).
        mask: uint8 (H,W): 1 object, 0 background, 255 ignored.
        id: Name within its source.
    """

    image: Tensor
    mask: Tensor
    id: str


class MaskSource(ABC):
    """Pictures with masks by number.

    Attributes:
        drawn: True if pictures are computed, so that keeping them in memory would gain nothing.
    """

    drawn = False

    @abstractmethod
    def __len__(self) -> int:
        """Number of pictures."""

    @abstractmethod
    def picture(self, index: int) -> MaskedPicture:
        """One picture with its mask.

        Raises:
            BrokenSample: If it cannot be read.
        """

    @abstractmethod
    def origins(self) -> set[str]:
        """What tells pictures of different splits apart: files, or ids; empty if splits cannot overlap."""

    def check(self, limit: int) -> MaskReport | None:
        """Look at up to ``limit`` masks for mistakes; None where masks are right by construction."""
        return None


class MaskSample(TypedDict):
    """One picture as tensors: the `MaskBatch` without its first dimension."""

    image: Tensor
    mask: Tensor
    id: str


class MaskBatch(TypedDict):
    """N pictures with masks as a module meets them.

    Keys:
        image: float32 (N,3,H,W) in [-1,1].
        mask: float32 (N,1,H,W): 1 object, 0 background, 255 ignored.
        id: N strings that name the pictures.
    """

    image: Tensor
    mask: Tensor
    id: list[str]


def collate_masks(samples: Sequence[MaskSample]) -> MaskBatch:
    """Stack samples of equal size."""
    return {
        "image": torch.stack([s["image"] for s in samples]),
        "mask": torch.stack([s["mask"] for s in samples]),
        "id": [s["id"] for s in samples],
    }
