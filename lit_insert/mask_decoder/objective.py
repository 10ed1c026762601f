"""Losses of mask logits, pure functions in float32; pixels of value 255 do not count.

Logits and masks are (B,1,H,W), masks in {0,1} or 255. Every loss is taken picture by picture and then averaged: small
objects weigh as much as large ones, and a batch spread over processes has the loss of the whole.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_insert.errors import InputError
from lit_insert.metrics.mask import IGNORE

SMOOTH = 1.0  # pixels added to both sides of an overlap's ratio: an empty picture found empty loses nothing


@dataclass
class LossWeights:
    """How much each term of the loss counts; 0 leaves it out.

    Args:
        bce: Binary cross-entropy.
        dice: Soft Dice.
        jaccard: Soft Jaccard.
        tversky: Tversky.
        focal: Focal.
        boundary: Boundary F-measure.
        presence: Cross-entropy of "is there anything at all".
        tversky_alpha: Cost of a false alarm in the Tversky loss.
        tversky_beta: Cost of a miss.
        focal_gamma: How far the focal loss leaves sure pixels alone.
        focal_alpha: Its weight of the foreground, the background's being 1 less it; null for none.
        boundary_tolerance: How far apart outlines may be, in pixels.
    """

    bce: float = 1.0
    dice: float = 1.0
    jaccard: float = 0.0
    tversky: float = 0.0
    focal: float = 0.0
    boundary: float = 0.0
    presence: float = 0.1
    tversky_alpha: float = 0.3
    tversky_beta: float = 0.7
    focal_gamma: float = 2.0
    focal_alpha: float | None = None
    boundary_tolerance: int = 2

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: If one is negative, or no term tells the inside of an object from its outside.
        """
        for name, value in asdict(self).items():
            if value is not None and value < 0:
                raise InputError(f"loss.{name} is {value}; give 0 or more")
        if not any((self.bce, self.dice, self.jaccard, self.tversky, self.focal)):
            raise InputError(
                "loss: bce, dice, jaccard, tversky and focal are all 0; set one, outlines do not tell in from out"
            )


def counted(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, truth in {0,1} and what counts in {0,1}, all float32 (B,1,H,W).

    Raises:
        ValueError: If the shapes differ.
    """
    if logits.shape != mask.shape or mask.ndim != 4:
        raise ValueError(f"expected two (B,1,H,W), got {tuple(logits.shape)} and {tuple(mask.shape)}")
    counts = (mask != IGNORE).float()
    return logits.float(), mask.float() * counts, counts


def _mean(value: Tensor, counts: Tensor) -> Tensor:
    return ((value * counts).sum((1, 2, 3)) / counts.sum((1, 2, 3)).clamp(min=1)).mean()


def bce_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy, mean over the pixels that count, then over pictures."""
    logits, truth, counts = counted(logits, mask)
    return _mean(F.binary_cross_entropy_with_logits(logits, truth, reduction="none"), counts)


def focal_loss(logits: Tensor, mask: Tensor, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """-α_t (1-p_t)^γ log p_t, mean over the pixels that count, then over pictures (Lin et al. 2017, eq. 5)."""
    logits, truth, counts = counted(logits, mask)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    wrong = torch.sigmoid(torch.where(truth > 0.5, -logits, logits))  # 1 - p_t
    value = wrong.pow(gamma) * cross_entropy
    if alpha is not None:
        value = value * torch.where(truth > 0.5, alpha, 1 - alpha)
    return _mean(value, counts)


def _overlap(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Soft true positives, false alarms and misses of each picture, (B,)."""
    logits, truth, counts = counted(logits, mask)
    probability = logits.sigmoid() * counts
    hit = (probability * truth).sum((1, 2, 3))
    return hit, probability.sum((1, 2, 3)) - hit, truth.sum((1, 2, 3)) - hit


def tversky_loss(logits: Tensor, mask: Tensor, alpha: float = 0.3, beta: float = 0.7) -> Tensor:
    """1 - (TP+1) / (TP + α FP + β FN + 1), mean over pictures (Salehi et al. 2017, equation 3, smoothed).

    α = β = 1/2 is the soft Dice loss with twice its smoothing, α = β = 1 the soft Jaccard loss.
    """
    hit, alarm, miss = _overlap(logits, mask)
    return (1 - (hit + SMOOTH) / (hit + alpha * alarm + beta * miss + SMOOTH)).mean()


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - (2 TP + 1) / (2 TP + FP + FN + 1), mean over pictures (Milletari et al. 2016, without the squares)."""
    hit, alarm, miss = _overlap(logits, mask)
    return (1 - (2 * hit + SMOOTH) / (2 * hit + alarm + miss + SMOOTH)).mean()


def jaccard_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - (TP + 1) / (TP + FP + FN + 1), mean over pictures (Rahman & Wang 2016)."""
    return tversky_loss(logits, mask, 1.0, 1.0)


def boundary_loss(logits: Tensor, mask: Tensor, tolerance: int = 2) -> Tensor:
    """1 - F of the soft outlines, mean over pictures (Bokhovkin & Burnaev 2019, "Boundary Loss for Remote Sensing").

    An outline is what a 3x3 erosion takes off; an outline pixel is found where the other outline, widened by
    ``tolerance``, has one. Nothing near an ignored pixel counts.
    """
    logits, truth, counts = counted(logits, mask)
    counts = _erode(counts)
    edges = [_outline(value) * counts for value in (logits.sigmoid(), truth)]
    side = 2 * tolerance + 1
    wide = [F.max_pool2d(edge, side, 1, tolerance) for edge in edges]
    sums = (1, 2, 3)
    precision = ((edges[0] * wide[1]).sum(sums) + SMOOTH) / (edges[0].sum(sums) + SMOOTH)
    recall = ((edges[1] * wide[0]).sum(sums) + SMOOTH) / (edges[1].sum(sums) + SMOOTH)
    return (1 - 2 * precision * recall / (precision + recall)).mean()


def _erode(value: Tensor) -> Tensor:
    """3x3 minimum; the frame of the picture takes nothing off."""
    return 1 - F.max_pool2d(1 - value, 3, 1, 1)


def _outline(value: Tensor) -> Tensor:
    return value - _erode(value)


def presence_target(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Whether pictures (B,1,H,W) have foreground, and whether that is known, both float32 (B,).

    It is unknown where there is none but some pixels are ignored.
    """
    ignored = mask == IGNORE
    present = ((mask > 0.5) & ~ignored).flatten(1).any(1)
    known = present | ~ignored.flatten(1).any(1)
    return present.float(), known.float()


def presence_loss(presence_logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of presence (B,), mean over pictures; 0 for those where it is unknown."""
    present, known = presence_target(mask)
    value = F.binary_cross_entropy_with_logits(presence_logits.float(), present, reduction="none")
    return (value * known).mean()


def mask_loss(logits: Tensor, presence_logits: Tensor, mask: Tensor, weights: LossWeights) -> dict[str, Tensor]:
    """The weighted sum.

    Args:
        logits: (B,1,H,W).
        presence_logits: (B,).
        mask: (B,1,H,W) in {0,1}, 255 to ignore.
        weights: Of the terms.

    Returns:
        "loss", and every term with a weight above 0 as "bce_loss", "dice_loss" and so on, unweighted.
    """
    w = weights
    terms = {
        "bce": lambda: bce_loss(logits, mask),
        "dice": lambda: dice_loss(logits, mask),
        "jaccard": lambda: jaccard_loss(logits, mask),
        "tversky": lambda: tversky_loss(logits, mask, w.tversky_alpha, w.tversky_beta),
        "focal": lambda: focal_loss(logits, mask, w.focal_gamma, w.focal_alpha),
        "boundary": lambda: boundary_loss(logits, mask, w.boundary_tolerance),
        "presence": lambda: presence_loss(presence_logits, mask),
    }
    parts = {name: term() for name, term in terms.items() if getattr(w, name) > 0}
    total = torch.stack([getattr(w, name) * value for name, value in parts.items()]).sum()
    return {"loss": total, **{f"{name}_loss": value.detach() for name, value in parts.items()}}
