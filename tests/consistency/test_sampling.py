import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline
from tiny import gaussian_consistency, seeded, unet

from lit_insert.consistency.karras import NoiseRange
from lit_insert.consistency.network import consistency_function
from lit_insert.consistency.sampling import (
    check_sigmas,
    guided,
    multistep,
    sigmas_at,
    sigmas_below,
    sigmas_for,
    standard_normal,
)
from lit_insert.errors import InputError

NOISE = NoiseRange()


@pytest.mark.parametrize("timesteps", [[0], [22, 0], [39, 22, 0]])
def test_equals_diffusers(timesteps):
    net = unet()
    pipe = ConsistencyModelPipeline(net, CMStochasticIterativeScheduler())
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(3, 3, 8, 8, generator=seeded(1))
    theirs = pipe(
        batch_size=3,
        num_inference_steps=None,
        timesteps=timesteps,
        latents=noise,
        generator=seeded(2),
        output_type="pt",
    ).images
    # diffusers draws once after every evaluation, so the last draw goes unused there.
    sigmas = sigmas_at(list(reversed(timesteps)), NOISE)
    f = consistency_function(net, NOISE)
    ours = multistep(f, noise, sigmas, generator=seeded(2))
    assert torch.allclose(ours / 2 + 0.5, theirs, atol=1e-5)


def test_numbers_of_steps_are_laid_out_as_diffusers_does():
    for steps in (1, 2, 3, 4, 7):
        scheduler = CMStochasticIterativeScheduler()
        scheduler.set_timesteps(steps)
        assert sigmas_for(steps, NOISE) == pytest.approx(scheduler.sigmas[:-1].tolist(), rel=1e-5)
    assert sigmas_for(2, NOISE)[1] == pytest.approx(2.24044, abs=1e-4)
    assert sigmas_at([0, 22], NOISE)[1] == pytest.approx(1.38237, abs=1e-4)


def test_the_exact_function_makes_the_data_in_any_number_of_steps():
    f = gaussian_consistency(0.1, 0.04, NOISE.sigma_min)
    noise = torch.randn(200, 3, 8, 8, generator=seeded(3))
    for sigmas in ([80.0], [80.0, 0.8], [80.0, 5.0, 0.8, 0.1]):
        made = multistep(f, noise, sigmas, generator=seeded(4), clip=False)
        assert made.mean().item() == pytest.approx(0.1, abs=0.01)
        assert made.var().item() == pytest.approx(0.04, rel=0.03)


def test_a_picture_depends_on_its_own_generator_only():
    f = consistency_function(unet(), NOISE)
    noise = torch.randn(3, 3, 8, 8, generator=seeded(5))
    together = multistep(f, noise, [80.0, 1.0], generator=[seeded(i) for i in range(3)])
    alone = multistep(f, noise[1:2], [80.0, 1.0], generator=[seeded(1)])
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    assert torch.equal(
        standard_normal((2, 3), [seeded(8), seeded(9)], "cpu")[1:], torch.randn(1, 3, generator=seeded(9))
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: check_sigmas([], NOISE),
        lambda: check_sigmas([80.0, 0.002], NOISE),
        lambda: check_sigmas([81.0], NOISE),
        lambda: check_sigmas([float("nan")], NOISE),
        lambda: check_sigmas([1.0, 1.0], NOISE),
        lambda: sigmas_at([0, 40], NOISE),
        lambda: sigmas_at([-1], NOISE),
        lambda: sigmas_at([22, 0], NOISE),
        lambda: sigmas_for(0, NOISE),
        lambda: sigmas_for(41, NOISE),
        lambda: sigmas_below(None, 0, NOISE),
        lambda: sigmas_below(None, 40, NOISE),
        lambda: sigmas_below(0.2, 4, NOISE, 12),
    ],
)
def test_levels_out_of_range_are_refused(call):
    with pytest.raises(InputError):
        call()


@pytest.mark.parametrize("grid", [12, 18, 40])
@pytest.mark.parametrize("begin", [None, 6.0, 0.2, 0.003])
def test_edits_keep_to_the_levels_that_were_learnt(grid, begin):
    learnt = [float(s) for s in NOISE.sigmas(grid)]
    root = [s ** (1 / 7) for s in learnt]
    nearest = min(range(1, grid), key=lambda i: abs(root[i] - (80 if begin is None else begin) ** (1 / 7)))
    for steps in range(1, nearest + 1):
        found = sigmas_below(begin, steps, NOISE, grid)
        assert found == sorted(set(found), reverse=True)
        assert len(found) == steps
        assert set(found) <= set(learnt[1:])
        assert found[0] == learnt[nearest]
    assert sigmas_below(begin, nearest, NOISE, grid) == learnt[nearest:0:-1]
    assert sigmas_below(begin, grid, NOISE, grid, at_most=True) == learnt[nearest:0:-1]


def test_guidance_goes_beyond_the_condition():
    def f(x, sigma, label):
        return x * 0 + label.view(-1, 1, 1, 1)

    x, sigma, label = torch.zeros(2, 3, 2, 2), torch.ones(2), torch.tensor([1, 3])
    assert guided(f, 1.0, 5) is f
    assert guided(f, 2.0, 5)(x, sigma, label)[:, 0, 0, 0].tolist() == [2 * 1 - 5, 2 * 3 - 5]
