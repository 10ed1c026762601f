import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from tiny_fusion import DIT, seeded, transformer

from lit_insert.errors import InputError
from lit_insert.fusion.network import DiTDH
from lit_insert.fusion.objective import (
    flow_loss,
    guided,
    interpolate,
    logit_normal,
    shift_of,
    shift_time,
    unshift_time,
)


def test_shifts_of_published_latents():
    sizes = ((768, 16, 16), (768, 32, 32), (192, 8, 8), (64, 8, 8))
    for shape, shift in zip(sizes, (6.928, 13.856, 1.732, 1.0), strict=True):
        assert shift_of(shape) == pytest.approx(shift, abs=1e-3)
    for t, u in ((0.3, 0.030), (0.5, 0.067), (0.8, 0.224), (0.95, 0.578)):
        assert unshift_time(t, 13.856) == pytest.approx(u, abs=1e-3)


def test_shifting_back_and_forth_is_the_identity():
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    for alpha in (1.0, 1.732, 6.928, 13.856):
        assert torch.allclose(shift_time(unshift_time(times, alpha), alpha), times, atol=1e-12)
        assert (shift_time(times, alpha).diff() > 0).all()
    assert torch.equal(shift_time(times, 1.0), times)


def test_times_are_logit_normal():
    theirs = compute_density_for_timestep_sampling(
        "logit_normal", 8, logit_mean=0.0, logit_std=1.0, generator=seeded(3)
    )
    assert torch.allclose(logit_normal(torch.randn(8, generator=seeded(3))), theirs, atol=1e-6)
    many = logit_normal(torch.randn(20000, generator=seeded()), 13.856)
    assert many.median() == pytest.approx(0.9327, abs=0.005)


def test_the_loss_is_that_of_the_velocity():
    z, e, t = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4), torch.rand(5)
    seen = []

    def oracle(x, time, label):
        seen.append((x, time, label))
        return e - z

    assert torch.allclose(flow_loss(oracle, z, e, t, torch.arange(5)), torch.zeros(5))
    x, time, label = seen[0]
    assert torch.allclose(x, (1 - t)[:, None, None, None] * z + t[:, None, None, None] * e)
    assert torch.equal(time, t)
    assert torch.equal(label, torch.arange(5))
    off = flow_loss(lambda x, time, label: e - z + 2, z, e, t)
    assert off.dtype == torch.float32
    assert torch.allclose(off, torch.full((5,), 4.0), atol=1e-5)


def test_the_loss_begins_at_two():
    z, e = torch.randn(8, 64, 8, 8, generator=seeded(1)), torch.randn(8, 64, 8, 8, generator=seeded(2))
    net = DiTDH(**DIT)
    loss = flow_loss(lambda x, t, c: net(x, t, c).sample, z, e, torch.rand(8)).mean()
    assert loss.item() == pytest.approx(2.0, abs=0.1)


def test_guidance():
    net = transformer()

    def velocity(x, t, label):
        return net(x, t, label).sample

    x, t, label = torch.randn(2, 64, 8, 8, generator=seeded()), torch.tensor([0.2, 0.8]), torch.tensor([0, 1])
    null = torch.tensor([3, 3])
    plain = velocity(x, t, label)
    assert torch.equal(guided(velocity, velocity, 1.0)(x, t, label), plain)
    cfg = guided(velocity, velocity, 2.5, lambda c: torch.full_like(c, 3))(x, t, label)
    weak = velocity(x, t, null)
    assert torch.allclose(cfg, weak + 2.5 * (plain - weak), atol=1e-5)
    near = guided(velocity, velocity, 1 + 1e-7, lambda c: torch.full_like(c, 3))(x, t, label)
    assert torch.allclose(near, plain, atol=1e-6)
    other = transformer(1)
    auto = guided(velocity, lambda x, t, c: other(x, t, c).sample, 1.5)(x, t, label)
    told = other(x, t, label).sample
    assert torch.allclose(auto, told + 1.5 * (plain - told), atol=1e-5)


def test_guidance_only_within_its_interval():
    def strong(x, t, c):
        return torch.ones_like(x)

    def weak(x, t, c):
        return torch.zeros_like(x)

    both = guided(strong, weak, 3.0, interval=(0.3, 0.6))
    out = both(torch.zeros(3, 1, 2, 2), torch.tensor([0.2, 0.5, 0.7]), None)
    assert out[:, 0, 0, 0].tolist() == [1, 3, 1]
    with pytest.raises(InputError, match="interval"):
        guided(strong, weak, 3.0, interval=(0.6, 0.3))


def test_the_path_ends_where_it_should():
    z, e = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    assert torch.equal(interpolate(z, e, torch.zeros(2)), z)
    assert torch.equal(interpolate(z, e, torch.ones(2)), e)
