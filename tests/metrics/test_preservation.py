import math

import numpy as np
import pytest
import torch

from lit_insert.metrics.preservation import BackgroundPreservation


def pictures(n=5, size=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(n, 3, size, size, generator=g) * 2 - 1 for _ in range(2))
    edited = torch.zeros(n, 1, size, size)
    edited[:, :, :4, :5] = 1
    return a, b, edited


def test_identical_pictures_differ_by_nothing():
    a, _, edited = pictures()
    metric = BackgroundPreservation()
    metric.update(a, a, edited)
    figures = metric.compute()
    assert figures["l1"] == 0
    assert figures["mse"] == 0
    assert figures["psnr"] == 100


def test_equals_numpy_outside_the_edit():
    a, b, edited = pictures()
    metric = BackgroundPreservation()
    metric.update(a, b, edited)
    keep = np.broadcast_to(edited.numpy() == 0, a.shape)
    diff = ((b - a) / 2).double().numpy()
    figures = metric.compute()
    assert figures["l1"].item() == pytest.approx(np.abs(diff[keep]).mean(), abs=1e-9)
    assert figures["mse"].item() == pytest.approx((diff[keep] ** 2).mean(), abs=1e-9)
    each = [-10 * math.log10((d[k] ** 2).mean()) for d, k in zip(diff, keep, strict=True)]
    assert figures["psnr"].item() == pytest.approx(np.mean(each), abs=1e-6)


def test_what_happens_inside_the_edit_does_not_count():
    a, _, edited = pictures()
    b = torch.where(edited.bool(), torch.ones_like(a), a)
    metric = BackgroundPreservation()
    metric.update(a, b, edited)
    assert metric.compute()["mse"] == 0


def test_parts_add_up_to_the_whole():
    a, b, edited = pictures()
    whole, parts = BackgroundPreservation(), BackgroundPreservation()
    whole.update(a, b, edited)
    parts.update(a[:2], b[:2], edited[:2])
    parts.update(a[2:], b[2:], edited[2:])
    for name, value in whole.compute().items():
        assert parts.compute()[name].item() == pytest.approx(value.item(), abs=1e-12)


def test_sizes_must_agree():
    a, b, edited = pictures()
    with pytest.raises(ValueError, match="sizes differ"):
        BackgroundPreservation().update(a, b[..., :6], edited)
