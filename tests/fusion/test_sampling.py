import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_fusion import seeded, transformer

from lit_insert.errors import InputError
from lit_insert.fusion.sampling import job_noise, noise_levels, refine


def test_levels_are_even_before_the_shift():
    assert noise_levels(0.8, 10) == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    alpha = 13.856
    shifted = noise_levels(0.5, 20, alpha)
    u = torch.linspace(0.5 / (alpha - (alpha - 1) * 0.5), 0, 11, dtype=torch.float64)[:-1]
    assert shifted == pytest.approx((alpha * u / (1 + (alpha - 1) * u)).tolist(), abs=1e-9)
    assert shifted[0] == 0.5
    assert len(noise_levels(0.02, 20)) == 1
    # the published grid of 50 points, of which ours is the part below a strength
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.928)
    scheduler.set_timesteps(sigmas=(1 - torch.linspace(0, 1, 51)[:-1]).tolist())
    assert torch.tensor(noise_levels(1.0, 50, 6.928)) == pytest.approx(scheduler.sigmas[:-1], abs=1e-6)


@pytest.mark.parametrize(("strength", "steps", "alpha"), [(0.3, 10, 1.0), (1.0, 7, 13.856), (0.95, 1, 6.928)])
def test_the_exact_velocity_leads_home(strength, steps, alpha):
    z, e = torch.randn(2, 4, 8, 8, generator=seeded(1)), torch.randn(2, 4, 8, 8, generator=seeded(2))
    home = refine(lambda x, t, c: e - z, z, e, noise_levels(strength, steps, alpha))
    assert torch.allclose(home, z, atol=1e-5)


def test_outside_the_mask_everything_stays():
    net = transformer()
    base, fused = torch.randn(2, 1, 64, 8, 8, generator=seeded(1))
    e = job_noise(0, (64, 8, 8))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 3:7] = 0.4
    inside, seen = (mask > 0).expand_as(base), []

    def velocity(x, t, c):
        seen.append((x.clone(), float(t[0])))
        return net(x, t, c).sample

    with torch.no_grad():
        z = refine(velocity, fused, e, noise_levels(0.6, 8), base=base, mask=mask)
        free = refine(velocity, fused, e, noise_levels(0.6, 8))
    assert torch.equal(z[~inside], base[~inside])
    assert not torch.allclose(z[inside], fused[inside], atol=1e-3)
    assert not torch.equal(free[~inside], base[~inside])
    for x, t in seen[: len(noise_levels(0.6, 8))]:
        assert torch.allclose(x[~inside], ((1 - t) * base + t * e)[~inside], atol=1e-6)


def test_noise_is_the_seeds_alone():
    first = job_noise(7, (4, 8, 8))
    torch.manual_seed(3)
    assert torch.equal(first, job_noise(7, (4, 8, 8)))
    assert not torch.equal(first, job_noise(8, (4, 8, 8)))


def test_a_batch_is_its_samples():
    net = transformer()
    fused, base = torch.randn(2, 4, 64, 8, 8, generator=seeded(1))
    e = torch.cat([job_noise(i, (64, 8, 8)) for i in range(4)])
    mask = (torch.rand(4, 1, 8, 8, generator=seeded(3)) > 0.5).float()

    def run(rows):
        with torch.no_grad():
            return refine(lambda x, t, c: net(x, t, c).sample, fused[rows], e[rows], noise_levels(0.5, 6),
                          base=base[rows], mask=mask[rows])  # fmt: skip

    together = run(slice(None))
    for i in range(4):
        assert torch.allclose(together[i : i + 1], run(slice(i, i + 1)), atol=1e-5)


def test_mistakes():
    for strength in (0.0, 1.1, -0.3):
        with pytest.raises(InputError, match="strength"):
            noise_levels(strength, 10)
    with pytest.raises(InputError, match="num_inference_steps"):
        noise_levels(0.5, 0)
    z = torch.zeros(1, 2, 4, 4)
    with pytest.raises(InputError, match="must fall"):
        refine(lambda x, t, c: x, z, z, [0.2, 0.4])
    with pytest.raises(InputError, match="own features"):
        refine(lambda x, t, c: x, z, z, [0.4], mask=z[:, :1])
