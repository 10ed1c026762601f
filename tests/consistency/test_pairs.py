import pytest
import torch
from tiny import seeded

from lit_insert.consistency.karras import NoiseRange
from lit_insert.consistency.pairs import PairSchedule
from lit_insert.consistency.schedules import ect_earlier, ict_probabilities
from lit_insert.errors import InputError

NOISE = NoiseRange()


def drawn(objective, step=0, n=20_000, **options):
    schedule = PairSchedule(**options).filled(objective)
    g = seeded(0)
    return schedule, schedule.draw(objective, step, torch.rand(n, generator=g), torch.randn(n, generator=g), NOISE)


def test_distillation_draws_neighbours_evenly():
    _, pairs = drawn("cd", s0=5)
    sigmas = NOISE.sigmas(5).float()
    for i in range(4):
        chosen = pairs.lower == sigmas[i]
        assert chosen.float().mean().item() == pytest.approx(0.25, abs=0.02)
        assert bool((pairs.sigma[chosen] == sigmas[i + 1]).all())
    assert bool((pairs.weight == 1).all())


def test_improved_training_draws_by_its_own_law_and_weights_by_the_gap():
    _, pairs = drawn("ict", total_steps=1000)
    sigmas = NOISE.sigmas(11).float()
    found = [(pairs.lower == s).float().mean().item() for s in sigmas[:-1]]
    assert found == pytest.approx(ict_probabilities(NOISE.sigmas(11)).tolist(), abs=0.01)
    assert torch.allclose(pairs.weight, 1 / (pairs.sigma - pairs.lower))


def test_extreme_random_numbers_stay_inside():
    edge = torch.tensor([0.0, 1 - 2**-24])
    for objective in ("cd", "ct", "ict"):
        schedule = PairSchedule(total_steps=10, s0=4, s1=4).filled(objective)
        pairs = schedule.draw(objective, 5, edge, torch.zeros(2), NOISE)
        assert pairs.lower[0].item() == pytest.approx(0.002)
        assert pairs.sigma[1].item() == 80


def test_tuning_goes_from_denoising_to_neighbours():
    schedule, first = drawn("ect", total_steps=80, step=0)
    _, last = drawn("ect", total_steps=80, step=80)
    assert (first.lower == 0).float().mean().item() == pytest.approx(0.811, abs=0.01)  # P(t < ln 7)
    assert (last.lower > 0).float().mean() > 0.98
    assert bool((last.lower < last.sigma).all())
    assert bool(((first.lower == 0) | (first.lower >= NOISE.sigma_min)).all())
    large = last.sigma > 1
    assert torch.allclose(last.lower[large], ect_earlier(last.sigma[large], 7))
    assert torch.allclose(last.weight, 1 / (last.sigma - last.lower))
    assert last.sigma.log().median().item() == pytest.approx(-1.1, abs=0.05)
    assert [schedule.levels("ect", k) for k in (0, 10, 79, 1000)] == [1, 2, 8, 8]


def test_published_values_stand_in_for_null():
    assert PairSchedule().filled("ct").levels("ct", 0) == 2
    assert PairSchedule(total_steps=400_000).filled("ict").levels("ict", 400_000) == 1281
    assert PairSchedule().filled("cd").decay("cd", 5) == 0.95
    assert PairSchedule(mu0=0.0).filled("ct").decay("ct", 5) == 0
    assert PairSchedule().filled("ict").decay("ict", 5) == 0
    with pytest.raises(InputError, match="target network"):
        PairSchedule(mu0=0.9).filled("ect")
    for wrong in ({"mu0": 1.0}, {"total_steps": 0}, {"s0": 1}, {"s0": 20, "s1": 10}):
        with pytest.raises(InputError):
            PairSchedule(**wrong).filled("ct")
    with pytest.raises(InputError, match="cd, ct, ict, ect"):
        PairSchedule().filled("dsm")
