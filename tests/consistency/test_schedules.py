from itertools import pairwise

import pytest
import torch

from lit_insert.consistency.karras import NoiseRange
from lit_insert.consistency.schedules import (
    ct_decay,
    ct_levels,
    ect_earlier,
    ect_stage,
    ict_levels,
    ict_probabilities,
)

PROGRESS = [0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1]
K = 800_000


def test_consistency_training_levels():
    steps = [round(p * K) for p in PROGRESS]
    assert [ct_levels(k, K, 2, 200) for k in steps] == [2, 7, 21, 45, 64, 101, 143, 175, 191, 201]
    assert [ct_levels(k, K, 2, 150) for k in steps] == [2, 6, 16, 34, 48, 76, 107, 131, 144, 151]


def test_consistency_training_decay():
    wanted = [0.95, 0.98545, 0.99513, 0.99772, 0.99840, 0.99898, 0.99928, 0.99941, 0.99946, 0.99949]
    decays = [ct_decay(ct_levels(round(p * K), K, 2, 200), 2, 0.95) for p in PROGRESS]
    assert decays == pytest.approx(wanted, abs=1e-5)
    assert ct_decay(10, 2, 0.0) == 0


def test_improved_training_doubles():
    assert [ict_levels(50_000 * i, 400_000) for i in range(8)] == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert ict_levels(49_999, 400_000) == 11


def test_no_schedule_leaves_its_end():
    for beyond in (K, K + 1, 10 * K):
        assert ct_levels(beyond, K, 2, 200) == 201
        assert ict_levels(beyond, K) == 1281
        assert ect_stage(beyond, K, 8) == 7
    assert ct_levels(-5, K, 2, 200) == 2


def test_improved_training_probabilities():
    found = ict_probabilities(NoiseRange().sigmas(11))
    wanted = [0.0626, 0.1817, 0.2455, 0.2135, 0.1425, 0.0806, 0.0411, 0.0196, 0.0089, 0.0040]
    assert found.tolist() == pytest.approx(wanted, abs=6e-5)
    assert ict_probabilities(NoiseRange().sigmas(1281)).sum().item() == pytest.approx(1)


def test_tuning_starts_as_diffusion_and_closes_the_gap():
    t = torch.tensor([0.01, 0.1, 1.0, 10.0, 80.0])
    assert ect_earlier(t, 0)[:3].tolist() == [0, 0, 0]  # 1 + 8 sigmoid(-t) > 2 there
    ratios = [ect_earlier(t, stage) / t for stage in range(8)]
    assert all(bool((b >= a).all()) for a, b in pairwise(ratios))
    assert ratios[2][3].item() == pytest.approx(1 - (1 + 8 / (1 + torch.e**10)) / 2**3)
    assert bool((ratios[7] < 1).all())
    assert ratios[7].min() > 0.96


def test_stages_are_equally_long():
    stages = [ect_stage(k, 800, 8) for k in range(800)]
    assert [stages.count(s) for s in range(8)] == [100] * 8
