import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lit_insert.metrics.fidelity import PictureFidelity


def pictures(n=4, size=24, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, size, size, generator=g) * 2 - 1


def figures(*batches):
    metric = PictureFidelity()
    for result, target in batches:
        metric.update(result, target)
    return {k: float(v) for k, v in metric.compute().items()}


def test_the_same_picture_is_perfect():
    a = pictures()
    assert figures((a, a)) == pytest.approx({"l1": 0, "psnr": 100, "ssim": 1})


def reference_ssim(a, b):
    """Wang et al. (2004), eq. 13, written out with an 11 px Gaussian window of 1.5 px and a mirrored border."""
    x = torch.arange(11, dtype=torch.float64) - 5
    g = torch.exp(-(x**2) / (2 * 1.5**2))
    window = (g[:, None] * g[None] / g.sum() ** 2).expand(3, 1, 11, 11)

    def blur(u):
        return F.conv2d(u, window, groups=3)

    a, b = (F.pad(u, (5, 5, 5, 5), mode="reflect") for u in (a, b))

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return values.mean((1, 2, 3))


def test_equals_the_formulas():
    a, b = pictures(seed=1), (pictures(seed=1) + 0.3 * pictures(seed=2)).clamp(-1, 1)
    found = figures((a, b))
    x, y = ((t.double() + 1) / 2 for t in (a, b))
    assert found["l1"] == pytest.approx(float((x - y).abs().mean()), abs=1e-9)
    each = -10 * np.log10(((x - y) ** 2).mean((1, 2, 3)).numpy())
    assert found["psnr"] == pytest.approx(each.mean(), abs=1e-6)
    assert found["ssim"] == pytest.approx(float(reference_ssim(x, y).mean()), abs=1e-5)


def test_parts_add_up_to_the_whole():
    a, b = pictures(seed=3), pictures(seed=4)
    assert figures((a[:1], b[:1]), (a[1:], b[1:])) == pytest.approx(figures((a, b)))


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="sizes differ"):
        PictureFidelity().update(pictures(2), pictures(3))
