"""Similarity and distance of pictures in an encoder's space."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric


class EmbeddingCosine(Metric):
    """Mean cosine between the embeddings of paired pictures (CLIP-I, DINO and their kin).

    Args:
        encoder: Maps pictures (N,…) to vectors (N,D); any normalisation is its own.
        **kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, encoder: Callable[[Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, first: Tensor, second: Tensor) -> None:
        """Add a batch of pairs.

        Raises:
            ValueError: If the two batches differ in length.
        """
        if len(first) != len(second):
            raise ValueError(f"{len(first)} pictures paired with {len(second)}")
        cosine = F.cosine_similarity(self.encoder(first).double(), self.encoder(second).double(), dim=-1)
        self.total += cosine.sum()
        self.count += len(cosine)

    def compute(self) -> Tensor:
        """Mean cosine, float64 scalar in [-1,1]."""
        return self.total / self.count.clamp(min=1)


def cmmd(first: Tensor, second: Tensor, sigma: float = 10.0) -> Tensor:
    """Squared maximum mean discrepancy with a Gaussian kernel, times 1000 (Jayasumana et al. 2024, CMMD).

    Args:
        first: Unit-norm embeddings (N,D).
        second: Unit-norm embeddings (M,D).
        sigma: Kernel width.

    Returns:
        Scalar, the biased (V-statistic) estimate: 0 for equal sets.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a.double(), b.double()).square() / (2 * sigma**2)).mean()

    return 1000 * (kernel(first, first) + kernel(second, second) - 2 * kernel(first, second))
