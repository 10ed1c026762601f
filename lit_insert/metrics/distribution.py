"""How far a set of generated pictures is from a set of real ones.

Every figure depends on the number of pictures, on the size, and for FID, KID, density and coverage on the feature
network; compare figures only where all of these are equal, and beside a real-against-real floor.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from lit_insert.metrics.features import RandomFeatures


def sliced_wasserstein(first: Tensor, second: Tensor, projections: int = 256, seed: int = 0) -> Tensor:
    """Mean Wasserstein-1 distance of one-dimensional projections (Rabin et al. 2011).

    Args:
        first: (N,…), flattened to N points.
        second: (N,…), as many points.
        projections: Random directions, of unit length.
        seed: Of the directions.

    Returns:
        Scalar in the units of the points.

    Raises:
        ValueError: If the numbers of points or their sizes differ.
    """
    a, b = first.flatten(1).float(), second.flatten(1).float()
    if a.shape != b.shape:
        raise ValueError(f"sets of one size are needed, not {tuple(a.shape)} and {tuple(b.shape)}")
    directions = torch.randn(a.shape[1], projections, generator=torch.Generator().manual_seed(seed)).to(a.device)
    directions /= directions.norm(dim=0)
    return ((a @ directions).sort(0).values - (b @ directions).sort(0).values).abs().mean()


def nearest_distances(queries: Tensor, references: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Distance of each picture to the nearest of others, for telling a copy of a training picture.

    Args:
        queries: (N,…).
        references: (M,…).
        chunk: Queries at once.

    Returns:
        Root mean squared differences (N,), and the numbers of the nearest references (N,) int64.
    """
    points, base = queries.flatten(1).float(), references.flatten(1).float()
    index = torch.cat([torch.cdist(part, base).argmin(1) for part in points.split(chunk)])
    # cdist is fast by a matrix product, in which a small distance loses its digits
    return (points - base[index]).square().mean(1).sqrt(), index


def density_coverage(real: Tensor, fake: Tensor, neighbours: int = 5) -> tuple[Tensor, Tensor]:
    """Density and coverage (Naeem et al. 2020, eqs. 4 and 5), more robust relatives of precision and recall.

    Args:
        real: Features of real pictures (N,D).
        fake: Features of generated ones (M,D).
        neighbours: k: each real point's ball reaches to its k-th nearest real neighbour.

    Returns:
        Density: how many balls a generated point lies in, over k; about 1 for equal distributions. Coverage: the
        fraction of balls with a generated point in them, in [0,1]; 1 - 2^-k for equal distributions of one size.

    Raises:
        ValueError: If there are not more than ``neighbours`` real points.
    """
    if len(real) <= neighbours:
        raise ValueError(f"{len(real)} real points have no {neighbours} neighbours each")
    real, fake = real.double(), fake.double()
    radius = torch.cdist(real, real).kthvalue(neighbours + 1, dim=1).values  # the nearest is the point itself
    distance = torch.cdist(real, fake)
    inside = distance < radius[:, None]
    return inside.sum() / (neighbours * len(fake)), inside.any(1).double().mean()


class _Features(nn.Module):
    """Lets torchmetrics take features that were computed once for all of its metrics."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class GenerationQuality(Metric):
    """Distances between real and generated pictures.

    ``compute`` returns "swd" (`sliced_wasserstein` of pixels in [-1,1]), "fid" (Heusel et al. 2017) and "kid"
    (Bińkowski et al. 2018, mean over subsets) with "kid_std" on the feature network, and "density" and "coverage".
    Sliced Wasserstein needs as many real as generated pictures; the first of the larger set are taken.

    Args:
        features: Frozen network: pictures (N,3,H,W) in [-1,1] to features (N,D), with an attribute ``num_features``;
            `RandomFeatures` by default.
        subset_size: Pictures in a subset of KID; at most half of the smaller set.
        subsets: Number of such subsets.
        neighbours: k of density and coverage.
        projections: Directions of the sliced Wasserstein distance.
        seed: Of directions and subsets.
        **kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    real_images: list[Tensor]
    fake_images: list[Tensor]
    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(
        self,
        features: nn.Module | None = None,
        subset_size: int = 200,
        subsets: int = 20,
        neighbours: int = 5,
        projections: int = 256,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.features = features or RandomFeatures()
        self.subset_size, self.subsets, self.neighbours = subset_size, subsets, neighbours
        self.projections, self.seed = projections, seed
        for name in ("real_images", "fake_images", "real_features", "fake_features"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    @torch.no_grad()
    def update(self, images: Tensor, real: bool) -> None:
        """Add pictures (N,3,H,W) in [-1,1]."""
        kind = "real" if real else "fake"
        getattr(self, f"{kind}_images").append(images.float().cpu())
        getattr(self, f"{kind}_features").append(self.features(images).float().cpu())

    def compute(self) -> dict[str, float]:
        """All figures.

        Raises:
            ValueError: If there are too few pictures of either kind.
        """
        images, features = [], []
        for name in ("real", "fake"):
            kept = [getattr(self, f"{name}_{what}") for what in ("images", "features")]
            found = [torch.cat(k) if isinstance(k, list) else k for k in kept]
            images.append(found[0])
            features.append(found[1])
        least = min(len(f) for f in features)
        if least <= max(self.neighbours, 2):
            raise ValueError(f"{least} pictures are too few to compare sets")
        given = _Features(features[0].shape[1])
        fid = FrechetInceptionDistance(feature=given)
        fid.set_dtype(torch.float64)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*save all extracted features")  # they are kept here anyway
            size = min(self.subset_size, least // 2)
            kid = KernelInceptionDistance(feature=given, subset_size=size, subsets=self.subsets)
        for part, real in zip(features, (True, False), strict=True):
            fid.update(part.double(), real=real)
            kid.update(part, real=real)
        with torch.random.fork_rng(devices=[]):  # torchmetrics draws the subsets from the global generator
            torch.manual_seed(self.seed)
            kid_mean, kid_std = kid.compute()
        density, coverage = density_coverage(features[0], features[1], self.neighbours)
        swd = sliced_wasserstein(images[0][:least], images[1][:least], self.projections, self.seed)
        named = {"swd": swd, "fid": fid.compute(), "kid": kid_mean, "kid_std": kid_std}
        return {k: float(v) for k, v in {**named, "density": density, "coverage": coverage}.items()}
