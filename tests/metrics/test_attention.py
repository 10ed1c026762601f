import math

import pytest
import torch

from lit_insert.metrics.attention import AttentionLocality, attention_locality


def masks():
    m = torch.zeros(1, 2, 4, 4)
    m[0, 0, :2, :2] = 1
    m[0, 1, 2:, 2:] = 1
    return m


def test_attention_on_its_own_thing_is_perfect():
    found = attention_locality(masks() * 0.5, masks())
    for name, value in {"in_frac": 1, "leak": 0, "out": 0, "in_mean": 0.5, "iou": 1}.items():
        assert found[name].tolist() == [[pytest.approx(value)] * 2]


def test_attention_on_the_other_thing_leaks():
    found = attention_locality(masks().flip(1), masks())
    for name, value in {"in_frac": 0, "leak": 1, "out": 4 / 12, "in_mean": 0, "iou": 0}.items():
        assert found[name].tolist() == [[pytest.approx(value)] * 2]


def test_even_attention_gives_the_share_of_the_area():
    found = attention_locality(torch.full((1, 2, 4, 4), 0.3), masks())
    for name, value in {"in_frac": 0.25, "leak": 0.25, "out": 0.3, "in_mean": 0.3}.items():
        assert found[name].tolist() == [[pytest.approx(value)] * 2]


def test_shares_do_not_depend_on_the_scale_and_means_do():
    draw = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 3, 6, 5, generator=draw)
    things = (torch.rand(2, 3, 6, 5, generator=draw) > 0.6).float()
    once, thrice = attention_locality(maps, things), attention_locality(3 * maps, things)
    for name in ("in_frac", "leak", "iou"):
        assert torch.allclose(once[name], thrice[name])
    for name in ("out", "in_mean"):
        assert torch.allclose(3 * once[name], thrice[name])
    k = maps[1, 2]
    others = [(k * things[1, j]).sum() / k.sum() for j in (0, 1)]
    assert torch.allclose(once["leak"][1, 2], sum(others) / 2)
    cut = k.flatten().quantile(1 - things[1, 2].mean(), interpolation="lower")
    top = k > cut
    wanted = (top & things[1, 2].bool()).sum() / (top | things[1, 2].bool()).sum()
    assert torch.allclose(once["iou"][1, 2], wanted)


def test_batches_add_up_and_empty_masks_do_not_count():
    draw = torch.Generator().manual_seed(1)
    maps, things = torch.rand(3, 2, 4, 4, generator=draw), masks().repeat(3, 1, 1, 1)
    things[2, 1] = 0
    whole, parts = AttentionLocality(), AttentionLocality()
    whole.update(maps, things)
    for i in range(3):
        parts.update(maps[i : i + 1], things[i : i + 1])
    assert parts.compute() == pytest.approx(whole.compute())
    found = attention_locality(maps, things)["in_frac"]
    assert found.isnan().sum() == 1
    assert whole.compute()["in_frac"] == pytest.approx(found.nanmean().item())
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert math.isnan(AttentionLocality().compute()["iou"])


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"should both be \(B,K,h,w\)"):
        attention_locality(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4))
