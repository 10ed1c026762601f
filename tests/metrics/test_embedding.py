import numpy as np
import pytest
import torch

from lit_insert.metrics.embedding import EmbeddingCosine, cmmd


def flat(x):
    return x.flatten(1)


def test_same_picture_has_cosine_one_and_opposite_minus_one():
    x = torch.rand(4, 3, 8, 8) + 0.1
    metric = EmbeddingCosine(flat)
    metric.update(x, x)
    assert metric.compute().item() == pytest.approx(1)
    metric.reset()
    metric.update(x, -x)
    assert metric.compute().item() == pytest.approx(-1)


def test_equals_numpy_and_adds_up_over_batches():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(7, 10, generator=g), torch.randn(7, 10, generator=g)
    metric = EmbeddingCosine(flat)
    metric.update(a[:3], b[:3])
    metric.update(a[3:], b[3:])
    x, y = a.numpy().astype(float), b.numpy().astype(float)
    wanted = ((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).mean()
    assert metric.compute().item() == pytest.approx(wanted, abs=1e-6)


def test_unpaired_batches_are_refused():
    with pytest.raises(ValueError, match="3 pictures paired with 2"):
        EmbeddingCosine(flat).update(torch.ones(3, 2), torch.ones(2, 2))


def test_cmmd_is_zero_for_equal_sets_and_grows_with_distance():
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(32, 6, generator=g), dim=1)
    assert cmmd(x, x).item() == pytest.approx(0, abs=1e-9)
    assert cmmd(x, x + 0.1) < cmmd(x, x + 0.5)


def test_cmmd_equals_the_double_sum():
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(5, 3, generator=g).double(), torch.randn(4, 3, generator=g).double()

    def mean_kernel(a, b):
        return np.mean([[np.exp(-((p - q) ** 2).sum() / 200) for q in b.numpy()] for p in a.numpy()])

    wanted = 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    assert cmmd(x, y).item() == pytest.approx(wanted, abs=1e-9)
