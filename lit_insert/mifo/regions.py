"""Regions that follow what is drawn: clusters of a picture's own self-attention, each given to a subject."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_insert.errors import InputError
from lit_insert.mifo.attention import AttentionRecorder, LayerName
from lit_insert.mifo.boxes import Box, rasterise

SEED = 123


@dataclass
class RefinementSettings:
    """How regions are refined (Dahary et al. 2024, section 4.3).

    Args:
        layers: Layers whose attention is averaged, by place and resolution, all of one resolution; by default those on
            the way up whose resolution is nearest to 16.
        start: Fraction of the steps after which boxes give way to regions.
        every: Fraction of the steps between two refinements.
        clusters: Clusters for each subject.
        min_score: Score below which a cluster belongs to no subject.
        restarts: Beginnings of the first clustering, of which the best counts; later ones go on from the last.
    """

    layers: list[str] | None = None
    start: float = 0.3
    every: float = 0.1
    clusters: int = 3
    min_score: float = 0.2
    restarts: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1 or not 0 < self.every <= 1 or min(self.clusters, self.restarts) < 1:
            raise InputError("refinement: start and every are fractions of the steps; clusters and restarts at least 1")

    def due(self, step: int, steps: int) -> bool:
        """Whether regions are refined before step number ``step`` of ``steps``."""
        first, period = round(self.start * steps), max(1, round(self.every * steps))
        return step >= max(first, 1) and (step - first) % period == 0


@torch.no_grad()
def kmeans(
    points: Tensor, clusters: int, *, centres: Tensor | None = None, restarts: int = 16, iterations: int = 100
) -> tuple[Tensor, Tensor]:
    """Cluster sets of points (Lloyd 1982), starting as k-means++ (Arthur & Vassilvitskii 2007).

    The draws come from a fixed seed and are the same for every set, so that a set's clusters depend on nothing else.

    Args:
        points: B sets, (B,N,D).
        clusters: K, at most N.
        centres: (B,K,D) to start from instead; ``restarts`` is then not used.
        restarts: Independent starts, of which the one with the smallest sum of squares is kept.
        iterations: At most this many rounds.

    Returns:
        Cluster of each point, int64 (B,N), and the centres (B,K,D).
    """
    points = points.float()
    sets, count, width = points.shape
    clusters = min(clusters, count)
    tries = 1 if centres is not None else restarts
    spread = points[:, None].expand(sets, tries, count, width).flatten(0, 1)
    if centres is None:
        draw = torch.Generator().manual_seed(SEED)
        uniform = torch.rand(tries, clusters, generator=draw).to(points).repeat(sets, 1)
        centres = _scattered(spread, uniform)
    labels = torch.full(spread.shape[:2], -1, device=points.device)
    for _ in range(iterations):
        nearest = torch.cdist(spread, centres).argmin(-1)
        if torch.equal(nearest, labels):
            break
        labels = nearest
        member = torch.nn.functional.one_hot(labels, clusters).to(spread)
        size = member.sum(1)[..., None]
        centres = torch.where(size > 0, member.transpose(1, 2) @ spread / size.clamp(min=1), centres)
    loss = (spread - centres.gather(1, labels[..., None].expand_as(spread))).square().sum((1, 2))
    best = loss.view(sets, tries).argmin(1) + torch.arange(sets, device=points.device) * tries
    return labels[best], centres[best]


def _scattered(points: Tensor, uniform: Tensor) -> Tensor:
    """First centres: each a point, drawn in proportion to its squared distance from those before."""
    rows = torch.arange(len(points), device=points.device)
    chosen = [points[rows, (uniform[:, 0] * points.shape[1]).long()]]
    distance = torch.full(points.shape[:2], float("inf"), device=points.device)
    for k in range(1, uniform.shape[1]):
        distance = torch.minimum(distance, (points - chosen[-1][:, None]).square().sum(-1))
        total = distance.cumsum(-1)
        drawn = torch.searchsorted(total, uniform[:, k, None] * total[:, -1:], right=True)[:, 0]
        chosen.append(points[rows, drawn.clamp(max=points.shape[1] - 1)])
    return torch.stack(chosen, dim=1)


def assign_clusters(labels: Tensor, cross: Tensor, clusters: int, min_score: float = 0.2) -> Tensor:
    """Give each cluster to the subject whose attention covers it best.

    score = Σ cross·cluster / min(Σ cross, Σ cluster).

    Args:
        labels: Cluster of each pixel, int64 (B,N).
        cross: How much each pixel belongs to each subject, in [0,1], (B,S,N).
        clusters: K.
        min_score: Clusters whose best score is lower belong to no subject.

    Returns:
        Boolean (B,S,N), disjoint.
    """
    member = torch.nn.functional.one_hot(labels, clusters).to(cross)  # (B,N,K)
    shared = cross @ member  # (B,S,K)
    smaller = torch.minimum(cross.sum(-1)[..., None], member.sum(1)[:, None])
    score, subject = (shared / smaller.clamp(min=1e-6)).max(1)
    owner = torch.where(score >= min_score, subject, cross.shape[1])
    own = torch.nn.functional.one_hot(owner, cross.shape[1] + 1)[..., : cross.shape[1]].to(cross)  # (B,K,S)
    return (member @ own).transpose(1, 2) > 0


class RegionTracker:
    """Running means of a sampler's attention, and the regions that they give.

    Args:
        layers: Self- and cross-attention layers of one resolution.
        subjects: Token positions of each subject; of a phrase the last counts, its noun.
        boxes: One a subject.
        settings: How to refine.

    Raises:
        InputError: If the layers differ in resolution or lack a kind.
    """

    def __init__(
        self,
        layers: Sequence[LayerName],
        subjects: Sequence[Sequence[int]],
        boxes: Sequence[Box],
        settings: RefinementSettings,
    ) -> None:
        if len({layer.level for layer in layers}) != 1 or {layer.kind for layer in layers} != {"cross", "self"}:
            found = ", ".join(map(str, layers)) or "none"
            raise InputError(f"refinement.layers: need self- and cross-attention of one resolution; got {found}")
        self.layers, self.leads, self.boxes, self.settings = tuple(layers), [s[-1] for s in subjects], boxes, settings
        self.regions: Tensor | None = None
        self._centres: Tensor | None = None
        self._sums: dict[str, Tensor] = {}
        self._size = (0, 0)

    def add(self, recorder: AttentionRecorder, rows: slice) -> None:
        """Take in the attention of a step.

        Args:
            recorder: Has recorded the layers.
            rows: Rows of its batch that are conditional.
        """
        for kind in ("self", "cross"):
            maps = [recorder.maps[layer][rows].detach().float() for layer in self.layers if layer.kind == kind]
            mean = torch.stack(maps).mean(0)
            mean = mean[..., self.leads] if kind == "cross" else mean
            self._sums[kind] = self._sums[kind] + mean if kind in self._sums else mean
        self._size = recorder.sizes[self.layers[0]]

    def refine(self) -> Tensor:
        """The regions now, boolean (B,S,h,w): within the regions before, at first the boxes, and disjoint."""
        rows = self._sums["self"]
        rows = rows / rows.amax(1, keepdim=True).clamp(min=1e-12)
        count = self.settings.clusters * len(self.boxes)
        labels, self._centres = kmeans(rows, count, centres=self._centres, restarts=self.settings.restarts)
        cross = self._sums["cross"].transpose(1, 2)
        cross = torch.sigmoid(10 * (cross / cross.amax(-1, keepdim=True).clamp(min=1e-12) - 0.2))
        low, high = cross.amin(-1, keepdim=True), cross.amax(-1, keepdim=True)
        cross = (cross - low) / (high - low).clamp(min=1e-12)
        boxes = rasterise(self.boxes, *self._size)[None].flatten(2).to(cross)
        before = boxes if self.regions is None else self.regions.flatten(2).to(cross)
        before = torch.where(before.amax(-1, keepdim=True) > 0, before, boxes)
        found = assign_clusters(labels, cross * before, self._centres.shape[1], self.settings.min_score)
        self.regions = found.unflatten(-1, self._size)
        return self.regions
