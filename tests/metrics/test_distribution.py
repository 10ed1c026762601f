import numpy as np
import pytest
import torch

from lit_insert.metrics.distribution import (
    GenerationQuality,
    density_coverage,
    nearest_distances,
    sliced_wasserstein,
)
from lit_insert.metrics.features import RandomFeatures


def points(n, d, seed, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def area_between_cumulative_distributions(a, b):
    """Wasserstein-1 of two sets of numbers by its other definition."""
    every = np.sort(np.concatenate([a, b]))
    below = [np.searchsorted(np.sort(x), every[:-1], side="right") / len(x) for x in (a, b)]
    return (np.abs(below[0] - below[1]) * np.diff(every)).sum()


def root(matrix):
    """Square root of a symmetric positive matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


def test_sliced_wasserstein_against_its_other_definition_and_a_shift():
    a, b = points(40, 6, 0), points(40, 6, 1, 0.5)
    directions = torch.randn(6, 16, generator=torch.Generator().manual_seed(3))
    directions /= directions.norm(dim=0)
    expected = np.mean([area_between_cumulative_distributions((a @ d).numpy(), (b @ d).numpy()) for d in directions.T])
    assert float(sliced_wasserstein(a, b, 16, seed=3)) == pytest.approx(expected, rel=1e-5)
    # a set and itself moved by v: every projection moves by |v·θ|
    v = torch.tensor([3.0, 0, 0, 0, 0, 0])
    assert float(sliced_wasserstein(a, a + v, 16, seed=3)) == pytest.approx(
        float((v @ directions).abs().mean()), rel=1e-4
    )
    assert float(sliced_wasserstein(a, a[torch.randperm(40)])) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="one size"):
        sliced_wasserstein(a, b[:30])


def test_nearest_distances_find_a_copy():
    train = points(50, 12, 0).view(50, 3, 2, 2)
    queries = torch.cat([train[17:18] + 0.001, points(9, 12, 1).view(9, 3, 2, 2)])
    distance, index = nearest_distances(queries, train, chunk=4)
    brute = (queries[:, None] - train).square().flatten(2).mean(2).sqrt()
    assert torch.allclose(distance, brute.min(1).values, atol=1e-4)
    assert torch.equal(index, brute.argmin(1))
    assert (int(index[0]), float(distance[0])) == (17, pytest.approx(0.001, abs=1e-4))


def brute_density_coverage(real, fake, k):
    distance = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=-1)  # noqa: E731
    radius = np.sort(distance(real, real), axis=1)[:, k]
    inside = distance(real, fake) < radius[:, None]
    return inside.sum() / (k * len(fake)), inside.any(1).mean()


@pytest.mark.parametrize("shift", [0.0, 0.7, 50.0])
def test_density_and_coverage_by_brute_force(shift):
    real, fake = points(60, 4, 0), points(45, 4, 1, shift)
    found = [float(v) for v in density_coverage(real, fake, 5)]
    assert found == pytest.approx(brute_density_coverage(real.double().numpy(), fake.double().numpy(), 5))
    if shift == 50:
        assert found == [0, 0]


def test_coverage_sees_a_lost_mode_that_density_does_not():
    real = torch.cat([points(100, 3, 0), points(100, 3, 1, 30.0)])
    whole, half = torch.cat([points(100, 3, 2), points(100, 3, 3, 30.0)]), points(200, 3, 4)
    full, lost = density_coverage(real, whole), density_coverage(real, half)
    assert float(full[1]) > 0.9
    assert float(lost[1]) < 0.55
    assert float(lost[0]) > 0.7
    with pytest.raises(ValueError, match="5 neighbours"):
        density_coverage(real[:5], whole)


class Mean(torch.nn.Module):
    """Features that can be checked by hand: the mean of each channel and of each half."""

    num_features = 6

    def forward(self, images):
        return torch.cat([images.mean((2, 3)), images[..., : images.shape[-1] // 2].mean((2, 3))], 1)


def pictures(n, seed, shift=0.0):
    return (0.4 * torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) + shift).clamp(-1, 1)


def scores(real, fake, **options):
    quality = GenerationQuality(**options)
    for part in real.split(30):
        quality.update(part, real=True)
    for part in fake.split(50):
        quality.update(part, real=False)
    return quality.compute()


def test_fid_and_kid_against_numpy():
    real, fake = pictures(80, 0), pictures(90, 1, 0.1)
    found = scores(real, fake, features=Mean(), subset_size=40, subsets=200)
    a, b = (Mean()(x).double().numpy() for x in (real, fake))
    covariances = np.cov(a.T), np.cov(b.T)
    both = root(root(covariances[0]) @ covariances[1] @ root(covariances[0]))
    fid = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * both)
    assert found["fid"] == pytest.approx(fid, rel=1e-6)

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def off_diagonal(k):
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    kid = off_diagonal(kernel(a, a)) + off_diagonal(kernel(b, b)) - 2 * kernel(a, b).mean()
    assert found["kid"] == pytest.approx(kid, rel=0.15)  # a mean over random subsets of half
    expected = brute_density_coverage(*(Mean()(x).double().numpy() for x in (real, fake)), 5)
    assert (found["density"], found["coverage"]) == pytest.approx(expected, rel=1e-3)
    assert found["swd"] == pytest.approx(float(sliced_wasserstein(real, fake[:80])), rel=1e-6)


def test_scores_repeat_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second = (scores(pictures(60, 0), pictures(60, 1)) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="too few"):
        scores(pictures(60, 0), pictures(3, 1))


def test_features_are_frozen_the_same_everywhere_and_tell_sets_apart():
    net = RandomFeatures()
    assert not any(p.requires_grad for p in net.parameters())
    assert not net.train().training
    assert float(net.convolutions[0].weight.flatten()[0]) == pytest.approx(-0.3064148, abs=1e-6)
    x = pictures(20, 0)
    assert net(x).shape == (20, net.num_features)
    assert torch.equal(net(x), RandomFeatures()(x))
    assert not torch.equal(net(x), RandomFeatures(seed=1)(x))
    real, same = pictures(120, 0), pictures(120, 1)
    floor = scores(real, same)["fid"]
    blurred = torch.nn.functional.avg_pool2d(same, 3, 1, 1)
    for worse in (same * 0.7, same + 0.2, blurred, same[:4].repeat(30, 1, 1, 1)):
        assert scores(real, worse)["fid"] > 2 * floor
