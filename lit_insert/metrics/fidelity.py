"""How close a result is to the picture that it should be."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure


class PictureFidelity(Metric):
    """Whole-picture distance of results to their targets, each figure a mean over pictures.

    ``compute`` returns "l1" on the [0,1] scale, "psnr" in dB, capped at 100 a picture, and "ssim", the structural
    similarity of Wang et al. (2004) with a Gaussian window of 11 px and a mirrored border.
    """

    full_state_update = False
    l1: Tensor
    psnr: Tensor
    ssim: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("l1", "psnr", "ssim", "count"):
            self.add_state(name, default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, result: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            result: (N,3,H,W) in [-1,1], at least 11 px a side.
            target: (N,3,H,W) in [-1,1].

        Raises:
            ValueError: If the sizes differ.
        """
        if result.shape != target.shape:
            raise ValueError(f"sizes differ: result {tuple(result.shape)}, target {tuple(target.shape)}")
        first, second = (((x.double() + 1) / 2).clamp(0, 1) for x in (result, target))
        error = first - second
        mse = error.square().mean((1, 2, 3))
        similarity = structural_similarity_index_measure(first, second, data_range=1.0, reduction="none")
        self.l1 += error.abs().mean((1, 2, 3)).sum()
        self.psnr += (-10 * torch.log10(mse.clamp(min=1e-10))).sum()
        self.ssim += similarity.sum()  # type: ignore[union-attr]
        self.count += len(first)

    def compute(self) -> dict[str, Tensor]:
        """The three figures, float64 scalars."""
        return {name: getattr(self, name) / self.count.clamp(min=1) for name in ("l1", "psnr", "ssim")}
