import pytest
import torch
from tiny import gaussian_denoiser, seeded

from lit_insert.consistency.edm import edm_loss, heun_sample, heun_step, lognormal
from lit_insert.consistency.karras import NoiseRange


def test_noise_levels_are_lognormal():
    sigma = lognormal(torch.randn(20_000, generator=seeded()))
    assert sigma.log().mean().item() == pytest.approx(-1.2, abs=0.03)
    assert sigma.log().std().item() == pytest.approx(1.2, abs=0.03)


@pytest.mark.parametrize("sigma", [0.02, 0.5, 20.0])
def test_the_best_denoiser_of_normal_data_has_a_loss_of_one_at_every_level(sigma):
    g = seeded(1)
    x = 0.1 + 0.5 * torch.randn(64, 3, 16, 16, generator=g)  # variance = sigma_data²
    noise = torch.randn(x.shape, generator=g)
    loss = edm_loss(gaussian_denoiser(0.1, 0.25), x, noise, torch.full((64,), sigma))
    assert loss.shape == (64,)
    assert loss.mean().item() == pytest.approx(1, abs=0.02)


def test_another_loses_what_its_bias_costs():
    x, noise = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    loss = edm_loss(lambda x, s, y: x + 0.3, x, noise, torch.full((2,), 0.5))
    assert loss.tolist() == pytest.approx([0.09 * 0.5 / 0.0625] * 2)


def test_the_sampler_follows_the_exact_trajectory():
    """Heun's error falls with the square of the step, Euler's with the step; both end on x0 = m + (x - m) s."""
    mean, variance = 0.2, 0.09
    noise = torch.randn(4, 3, 8, 8, generator=seeded(2), dtype=torch.float64)
    exact = mean + (80 * noise - mean) * (variance / (variance + 80.0**2)) ** 0.5
    denoiser = gaussian_denoiser(mean, variance)
    errors = {
        (order, n): (heun_sample(denoiser, noise, NoiseRange().sigmas(n), order=order) - exact).abs().max().item()
        for order in (1, 2)
        for n in (20, 40, 80)
    }
    assert errors[2, 80] < 5e-3
    assert errors[2, 20] / errors[2, 80] > 8
    assert 2 < errors[1, 20] / errors[1, 80] < 8


def test_rising_levels_are_taken_from_the_top():
    noise, denoiser = torch.randn(1, 3, 4, 4, generator=seeded(3)), gaussian_denoiser(0.0, 0.25)
    rising = NoiseRange().sigmas(5)
    assert torch.equal(heun_sample(denoiser, noise, rising), heun_sample(denoiser, noise, rising.flip(0).tolist()))


def test_a_step_takes_each_sample_at_its_own_level():
    denoiser, x = gaussian_denoiser(0.0, 0.25), torch.randn(3, 3, 4, 4, generator=seeded(4))
    high, low = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.1, 2.0])
    together = heun_step(denoiser, x, high, low)
    alone = torch.cat([heun_step(denoiser, x[i : i + 1], high[i : i + 1], low[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone)
