"""Does each token look at its own thing? Figures on attention maps and masks."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

NAMES = ("in_frac", "leak", "out", "in_mean", "iou")


def attention_locality(maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Where attention goes, for each of K tokens.

    - in_frac: ΣA·M / ΣA, the share that is on its own thing.
    - leak: ΣA·M_j / ΣA, the share that is on another thing, averaged over the others; 0 for a single thing.
    - out: mean of A outside M.
    - in_mean: mean of A inside M; where it falls while ``out`` falls too, attention has collapsed.
    - iou: overlap of M with the pixels of highest attention, as many as M covers.

    Args:
        maps: Attention (B,K,h,w), 0 or more.
        masks: Masks of the K things (B,K,h,w) in [0,1].

    Returns:
        Name to float32 (B,K); NaN where a mask is empty.

    Raises:
        ValueError: If the shapes differ.
    """
    if maps.shape != masks.shape or maps.ndim != 4:
        raise ValueError(f"maps {tuple(maps.shape)} and masks {tuple(masks.shape)} should both be (B,K,h,w)")
    a, m = maps.float().flatten(2), masks.float().flatten(2)
    things, pixels = a.shape[1:]
    shares = a @ m.transpose(1, 2) / a.sum(-1, keepdim=True).clamp(min=1e-12)  # (B,k,j)
    own = shares.diagonal(dim1=1, dim2=2)
    size = m.sum(-1)
    empty = size == 0
    found = {
        "in_frac": own,
        "leak": (shares.sum(-1) - own) / max(1, things - 1),
        "out": (a * (1 - m)).sum(-1) / (pixels - size).clamp(min=1e-12),
        "in_mean": (a * m).sum(-1) / size.clamp(min=1e-12),
        "iou": _top_overlap(a, m),
    }
    return {name: value.masked_fill(empty, float("nan")) for name, value in found.items()}


def _top_overlap(a: Tensor, m: Tensor) -> Tensor:
    inside = m >= 0.5
    rank = a.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    top = rank < inside.sum(-1, keepdim=True).clamp(min=1)
    return (top & inside).sum(-1) / (top | inside).sum(-1)


class AttentionLocality(Metric):
    """Means of `attention_locality` over all tokens seen; ``compute`` returns a dictionary of its names.

    Args:
        **kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", default=torch.zeros(len(NAMES), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Add maps and masks, both (B,K,h,w); tokens with an empty mask are left out.

        Raises:
            ValueError: If the shapes differ.
        """
        found = attention_locality(maps, masks)
        values = torch.stack([found[name] for name in NAMES]).flatten(1).double()
        self.total += values.nansum(1)
        self.count += (~values[0].isnan()).sum()

    def compute(self) -> dict[str, float]:
        """All figures; NaN before anything was added."""
        means = (self.total / self.count).tolist()
        return dict(zip(NAMES, means, strict=True))
