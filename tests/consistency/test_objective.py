import pytest
import torch
from tiny import gaussian_consistency, gaussian_denoiser, seeded, unet

from lit_insert.consistency.distances import l2
from lit_insert.consistency.karras import NoiseRange
from lit_insert.consistency.network import consistency_function
from lit_insert.consistency.objective import Randomness, consistency_loss, distilled_point, shared_noise_point

MEAN, VARIANCE, NOISE = 0.1, 0.16, NoiseRange()
EXACT = gaussian_consistency(MEAN, VARIANCE, NOISE.sigma_min)


def pictures(n=256):
    g = seeded(0)
    x = MEAN + VARIANCE**0.5 * torch.randn(n, 3, 8, 8, generator=g, dtype=torch.float64)
    return x, torch.randn(x.shape, generator=g, dtype=torch.float64)


def pairs(levels, n):
    sigmas = NOISE.sigmas(levels)
    index = torch.arange(n) % (levels - 1)
    return sigmas[index + 1], sigmas[index]


def distilled(levels, order=2, f=EXACT):
    x, noise = pictures()
    sigma, lower = pairs(levels, len(x))
    x_high = shared_noise_point(x, noise, sigma)
    x_low = distilled_point(gaussian_denoiser(MEAN, VARIANCE), x_high, sigma, lower, order=order)
    return consistency_loss(f, f, x_high=x_high, sigma=sigma, x_low=x_low, lower=lower, distance=l2).mean().item()


def test_the_exact_function_has_no_distillation_loss_but_the_solvers():
    coarse, fine = distilled(40), distilled(320)
    assert fine < 1e-8
    assert coarse / fine > 1000  # a Heun step's error is cubic in its length, its square of degree six
    assert distilled(320, order=1) > 10 * fine
    assert distilled(320, f=lambda x, s, y: EXACT(x, 1.1 * s)) > 1000 * fine


def test_the_exact_function_has_the_known_training_loss():
    x, noise = pictures(4096)
    sigma, lower = torch.full((4096,), 1.0), torch.full((4096,), 0.7)
    loss = consistency_loss(
        EXACT,
        EXACT,
        x_high=shared_noise_point(x, noise, sigma),
        sigma=sigma,
        x_low=shared_noise_point(x, noise, lower),
        lower=lower,
        distance=l2,
    )
    r = [((VARIANCE + NOISE.sigma_min**2) / (VARIANCE + s * s)) ** 0.5 for s in (1.0, 0.7)]
    known = VARIANCE * (r[0] - r[1]) ** 2 + (1.0 * r[0] - 0.7 * r[1]) ** 2
    assert loss.mean().item() == pytest.approx(known, rel=0.01)


def arguments():
    x, noise = torch.randn(2, 3, 8, 8, generator=seeded(1)), torch.randn(2, 3, 8, 8, generator=seeded(2))
    sigma, lower = torch.tensor([1.0, 5.0]), torch.tensor([0.5, 3.0])
    points = {"x_high": shared_noise_point(x, noise, sigma), "x_low": shared_noise_point(x, noise, lower)}
    return x, {**points, "sigma": sigma, "lower": lower, "distance": l2}


def test_the_gradient_goes_through_the_upper_point_only():
    _, given = arguments()
    net = unet()
    f = consistency_function(net, NOISE)
    consistency_loss(f, f, **given).sum().backward()
    ours = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    with torch.no_grad():
        wanted = f(given["x_low"], given["lower"], None)
    l2(f(given["x_high"], given["sigma"], None), wanted).sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(ours, net.parameters(), strict=True))


def test_student_and_target_drop_the_same_units():
    net = unet(dropout=0.5).train()
    f = consistency_function(net, NOISE)
    x, given = arguments()
    given |= {"x_low": given["x_high"], "lower": given["sigma"]}
    before = torch.get_rng_state()
    assert consistency_loss(f, f, **given).tolist() == [0, 0]
    assert not torch.equal(torch.get_rng_state(), before)  # the next step drops others
    assert not torch.equal(f(x, given["sigma"]), f(x, given["sigma"]))


def test_randomness_repeats():
    randomness = Randomness(torch.device("cpu"))
    assert not randomness.drawn()
    first = torch.rand(3)
    assert randomness.drawn()
    randomness.restore()
    assert torch.equal(torch.rand(3), first)


def test_below_the_floor_the_clean_picture_is_the_target():
    x, given = arguments()
    given["lower"] = torch.tensor([0.0, 3.0])
    f = consistency_function(unet(), NOISE)
    loss = consistency_loss(f, f, **given, clean=x, floor=NOISE.sigma_min)
    made = f(given["x_high"], given["sigma"])
    assert loss[0].item() == pytest.approx(l2(made, x)[0].item())
    assert loss[1].item() == pytest.approx(l2(made, f(given["x_low"], torch.tensor([3.0, 3.0])))[1].item())


def trained(lower, *, dropout=0.0, labels=False, **options):
    """Loss, gradients, batch sizes of the target's calls, and the random state afterwards."""
    g, n = seeded(3), len(lower)
    x, noise = torch.randn(n, 3, 8, 8, generator=g), torch.randn(n, 3, 8, 8, generator=g)
    lower, sigma = torch.tensor(lower), torch.linspace(5.0, 9.0, n)
    net = unet(dropout=dropout, num_classes=4 if labels else None).train()
    f, seen = consistency_function(net, NOISE), []

    def target(x, sigma, label):
        seen.append(len(x))
        return f(x, sigma, label)

    torch.manual_seed(0)
    loss = consistency_loss(
        f,
        target,
        x_high=shared_noise_point(x, noise, sigma),
        sigma=sigma,
        x_low=shared_noise_point(x, noise, lower),
        lower=lower,
        distance=l2,
        label=torch.arange(n) % 4 if labels else None,
        **{"floor": NOISE.sigma_min, **options, "clean": x if options.get("clean") else None},
    )
    loss.sum().backward()
    return loss.detach(), [p.grad for p in net.parameters()], seen, torch.get_rng_state()


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("known", [0, 2, 4])
def test_rows_whose_target_is_known_are_not_evaluated_and_nothing_changes(clean, dropout, known):
    lower = [0.0 if clean else NOISE.sigma_min] * known + [1.0, 2.0, 3.0, 4.0][known:]
    lower = [lower[i] for i in (1, 3, 0, 2)]
    given = {"dropout": dropout, "clean": clean, "labels": True}
    loss, grads, seen, state = trained(lower, **given)
    every, all_grads, all_seen, all_state = trained(lower, **given, every_row=True)
    assert all_seen == [4]
    assert seen == ([] if known == 4 else [4 if dropout else 4 - known])  # dropout needs the student's shapes
    torch.testing.assert_close(loss, every, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grads, all_grads, rtol=1e-5, atol=1e-6)
    assert torch.equal(state, all_state)


@pytest.mark.parametrize("fewest_rows", [1, 2, 3, 9])
def test_rows_evaluated_for_their_number_alone_change_nothing(fewest_rows):
    lower = [0.0, 1.0, 0.0, 0.0]
    loss, grads, seen, _ = trained(lower, clean=True, fewest_rows=fewest_rows)
    every, all_grads, _, _ = trained(lower, clean=True, every_row=True)
    assert seen == [min(fewest_rows, 4)]
    torch.testing.assert_close(loss, every, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grads, all_grads, rtol=1e-5, atol=1e-6)
    assert trained([0.0] * 4, clean=True, fewest_rows=fewest_rows)[2] == []


def test_a_changing_number_of_rows_is_compiled_once():
    graphs = []
    net = torch.nn.Conv2d(3, 3, 3, padding=1)

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    net.compile(backend=backend)
    for unknown in (5, 3, 1, 8, 2, 1, 7):
        x = torch.randn(8, 3, 8, 8)
        loss = consistency_loss(
            lambda x, sigma, label: net(x),
            lambda x, sigma, label: net(x),
            x_high=x + 1,
            sigma=torch.ones(8),
            x_low=x,
            lower=(torch.arange(8) < unknown).float(),
            distance=l2,
            fewest_rows=2,
        )
        loss.sum().backward()
    assert len(graphs) == 2  # one that trains, one that does not


def test_without_a_floor_every_row_is_evaluated():
    assert trained([0.002, 0.5], floor=0.0)[2] == [2]
