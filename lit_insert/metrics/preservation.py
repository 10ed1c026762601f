"""How well an edit leaves alone what it should leave alone."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class BackgroundPreservation(Metric):
    """Difference between a result and its source outside the edited region.

    ``compute`` returns "l1" and "mse" over all counted pixels on the [0,1] scale, "psnr" in dB as the mean over
    pictures, and "psnr_pooled", the PSNR of the pooled error, which one bad picture can dominate. A picture's PSNR
    is capped at 100 dB.
    """

    full_state_update = False
    l1: Tensor
    squared: Tensor
    pixels: Tensor
    psnr: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("l1", "squared", "pixels", "psnr", "count"):
            self.add_state(name, default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, source: Tensor, result: Tensor, edited: Tensor) -> None:
        """Add a batch.

        Args:
            source: (N,3,H,W) in [-1,1].
            result: (N,3,H,W) in [-1,1].
            edited: (N,1,H,W) in {0,1} or bool; these pixels do not count.

        Raises:
            ValueError: If the sizes differ.
        """
        if source.shape != result.shape or edited.shape[-2:] != source.shape[-2:]:
            raise ValueError(
                f"sizes differ: source {tuple(source.shape)}, result {tuple(result.shape)}, "
                f"edited {tuple(edited.shape)}"
            )
        keep = (~edited.bool()).expand_as(source).double()
        error = (result.double() - source.double()) / 2 * keep
        per_picture = keep.sum((1, 2, 3))
        squared = error.square().sum((1, 2, 3))
        mse = squared / per_picture.clamp(min=1)
        self.psnr += (-10 * torch.log10(mse.clamp(min=1e-10))).sum()
        self.count += len(source)
        self.l1 += error.abs().sum()
        self.squared += squared.sum()
        self.pixels += per_picture.sum()

    def compute(self) -> dict[str, Tensor]:
        """The four figures, float64 scalars."""
        mse = self.squared / self.pixels.clamp(min=1)
        return {
            "l1": self.l1 / self.pixels.clamp(min=1),
            "mse": mse,
            "psnr": self.psnr / self.count.clamp(min=1),
            "psnr_pooled": -10 * torch.log10(mse.clamp(min=1e-10)),
        }
