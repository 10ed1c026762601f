"""How well masks fit: overlap, boundary, and whether there is anything at all.

Every class takes probabilities (N,1,H,W) in [0,1], not logits, and masks (N,1,H,W) in {0,1} with 255 for pixels that
do not count. A pixel is foreground where its probability is above ``threshold``, as in
:class:`~lit_insert.mask_decoder.pipeline.MaskPipeline`. Pictures of different sizes go in separate updates.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryJaccardIndex

IGNORE = 255


def mask_metrics(threshold: float = 0.5, tolerance: float = 2.0, prefix: str | None = None) -> MetricCollection:
    """All of them, called with keywords: ``update(probability=…, mask=…, presence=…)``.

    Args:
        threshold: Probability above which a pixel is foreground, and a picture has something in it.
        tolerance: Of the boundaries, in pixels.
        prefix: Of the names, such as "val/".

    Returns:
        "iou", "image_iou", "dice", "boundary_f" and "presence_accuracy".
    """
    # Without compute groups: torchmetrics would merge metrics whose states happen to be equal after one batch.
    metrics: dict[str, Metric | MetricCollection] = {
        "iou": GlobalIoU(threshold),
        "image_iou": ImageIoU(threshold),
        "dice": Dice(threshold),
        "boundary_f": BoundaryF(tolerance, threshold),
        "presence_accuracy": PresenceAccuracy(threshold),
    }
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


def _split(probability: Tensor, mask: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, truth and what counts, all bool (N,1,H,W); the first two are false where nothing counts."""
    if probability.shape != mask.shape or mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"expected two (N,1,H,W), got {tuple(probability.shape)} and {tuple(mask.shape)}")
    if probability.numel() and (probability.min() < 0 or probability.max() > 1):
        raise ValueError("probabilities must lie in [0,1]; give logits.sigmoid()")
    counts = mask != IGNORE
    return (probability > threshold) & counts, (mask > 0.5) & counts, counts


class GlobalIoU(BinaryJaccardIndex):
    """Intersection over union, counted over all pixels of all pictures; 1 if all of them are empty and found so.

    Large objects weigh more than small ones; a picture without foreground counts only through false alarms.

    Args:
        threshold: Probability above which a pixel is foreground.
        **kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(threshold, ignore_index=IGNORE, validate_args=False, zero_division=1.0, **kwargs)

    def update(self, probability: Tensor, mask: Tensor) -> None:
        """Add a batch.

        Raises:
            ValueError: If the shapes differ or a probability lies outside [0,1].
        """
        found, _, _ = _split(probability, mask, self.threshold)
        super().update(found.long(), mask.long())


class _ImageMean(Metric):
    """Mean of a score over pictures; subclasses say which."""

    full_state_update = False
    higher_is_better = True

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold
        # Float32: Apple's devices have nothing longer, and the error of a million pictures stays below 1e-4.
        self.add_state("total", default=torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("pictures", default=torch.zeros(()), dist_reduce_fx="sum")

    total: Tensor
    pictures: Tensor

    def update(self, probability: Tensor, mask: Tensor) -> None:
        """Add a batch.

        Raises:
            ValueError: If the shapes differ or a probability lies outside [0,1].
        """
        scores = self.scores(probability, mask)
        self.total += scores.sum()
        self.pictures += len(scores)

    @abstractmethod
    def scores(self, probability: Tensor, mask: Tensor) -> Tensor:
        """The score of each picture, float32 (N,) in [0,1]; keeps nothing."""

    def compute(self) -> Tensor:
        """Mean over pictures, float32 scalar in [0,1]."""
        return self.total / self.pictures.clamp(min=1)


class ImageIoU(_ImageMean):
    """Mean over pictures of intersection over union; a picture that is empty and found so counts 1.

    Args:
        threshold: Probability above which a pixel is foreground.
        **kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    def scores(self, probability: Tensor, mask: Tensor) -> Tensor:
        """IoU of each picture, float32 (N,)."""
        found, truth, _ = _split(probability, mask, self.threshold)
        return _ratio((found & truth).sum((1, 2, 3)), (found | truth).sum((1, 2, 3)))


class Dice(_ImageMean):
    """Mean over pictures of 2|A∩B| / (|A|+|B|); a picture that is empty and found so counts 1.

    Args:
        threshold: Probability above which a pixel is foreground.
        **kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    def scores(self, probability: Tensor, mask: Tensor) -> Tensor:
        """Dice of each picture, float32 (N,)."""
        found, truth, _ = _split(probability, mask, self.threshold)
        return _ratio(2 * (found & truth).sum((1, 2, 3)), found.sum((1, 2, 3)) + truth.sum((1, 2, 3)))


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole.clamp(min=1), 1.0)


class BoundaryF(_ImageMean):
    """Mean over pictures of the boundary F-measure.

    A boundary pixel is one of the mask with a neighbour (left, right, above, below) outside it; the picture's frame
    is no boundary, nor is the edge of an ignored region. Precision is the fraction of predicted boundary pixels
    that lie within ``tolerance`` of a true one (Euclidean, between pixel centres), recall the reverse, and a
    picture's score their harmonic mean (Csurka et al. 2013, "What is a good evaluation measure for semantic
    segmentation?"; Perazzi et al. 2016, DAVIS, take the same F with a tolerance of 0.008 of the diagonal). Where
    neither has a boundary the score is 1, where only one has, 0.

    Args:
        tolerance: In pixels; of the size that the masks are compared at.
        threshold: Probability above which a pixel is foreground.
        **kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    def __init__(self, tolerance: float = 2.0, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(threshold, **kwargs)
        self.tolerance = tolerance

    def scores(self, probability: Tensor, mask: Tensor) -> Tensor:
        """Boundary F of each picture, float32 (N,)."""
        found, truth, counts = _split(probability, mask, self.threshold)
        edges = [_boundary(found, counts), _boundary(truth, counts)]
        fractions, sizes = [], []
        for own, other in (edges, edges[::-1]):
            size = own.sum((1, 2, 3))
            fractions.append((own & _grow(other, self.tolerance)).sum((1, 2, 3)) / size.clamp(min=1))
            sizes.append(size)
        precision, recall = fractions
        f = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
        return torch.where((sizes[0] == 0) & (sizes[1] == 0), 1.0, f)


def _boundary(mask: Tensor, counts: Tensor) -> Tensor:
    outside = F.pad(~mask & counts, (1, 1, 1, 1), value=False)
    near = outside[..., 1:-1, :-2] | outside[..., 1:-1, 2:] | outside[..., :-2, 1:-1] | outside[..., 2:, 1:-1]
    return mask & near


def _grow(mask: Tensor, radius: float) -> Tensor:
    """Dilation by a disk."""
    reach = int(radius)
    axis = torch.arange(-reach, reach + 1, device=mask.device, dtype=torch.float32)
    disk = (axis[:, None].square() + axis.square() <= radius * radius).float()
    return F.conv2d(mask.float(), disk[None, None], padding=reach) > 0.5


class PresenceAccuracy(Metric):
    """How often "there is something" is said rightly.

    A picture has something where any pixel that counts is foreground. One that has no foreground but ignored pixels
    is left out: what is there is unknown.

    Args:
        threshold: Score above which something is said to be there.
        **kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = True
    right: Tensor
    pictures: Tensor

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold
        self.add_state("right", default=torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("pictures", default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, presence: Tensor, mask: Tensor) -> None:
        """Add a batch.

        Args:
            presence: Probability (N,) that there is something.
            mask: (N,1,H,W) in {0,1}, 255 to ignore.

        Raises:
            ValueError: If there are not as many of both.
        """
        if presence.shape != mask.shape[:1]:
            raise ValueError(f"{tuple(presence.shape)} presence scores for {tuple(mask.shape)} masks")
        ignored = mask == IGNORE
        truth = ((mask > 0.5) & ~ignored).flatten(1).any(1)
        known = truth | ~ignored.flatten(1).any(1)
        self.right += (((presence > self.threshold) == truth) & known).sum()
        self.pictures += known.sum()

    def compute(self) -> Tensor:
        """Fraction of pictures judged rightly, float32 scalar in [0,1]."""
        return self.right / self.pictures.clamp(min=1)
