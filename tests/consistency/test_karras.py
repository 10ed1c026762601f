import pytest
import torch
from tiny import unet

from lit_insert.consistency.karras import NoiseRange, boundary_scalings, edm_scalings, noise_condition
from lit_insert.consistency.network import consistency_function
from lit_insert.errors import InputError

TABLE = [
    *(0.002, 0.00753, 0.02293, 0.05995, 0.13952, 0.29644, 0.58535, 1.08817, 1.92334),
    *(3.25682, 5.31519, 8.40094, 12.91008, 19.35245, 28.37458, 40.78557, 57.58598, 80.0),
]


def test_eighteen_levels():
    assert torch.allclose(NoiseRange().sigmas(18).float(), torch.tensor(TABLE), rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("count", [2, 3, 18, 40, 151, 1281])
def test_levels_rise_between_exact_ends(count):
    levels = NoiseRange().sigmas(count)
    assert len(levels) == count
    assert (levels[0], levels[-1]) == (0.002, 80.0)
    assert bool((levels.diff() > 0).all())


@pytest.mark.parametrize(
    ("sigma", "skip", "out", "into", "noise"),
    [
        (0.002, 1.0, 0.0, None, None),
        (0.5, 0.502004, 0.352139, 1.414214, -173.2868),
        (80.0, 3.9e-5, 0.499978, 0.0125, 1095.5067),
    ],
)
def test_scalings(sigma, skip, out, into, noise):
    level = torch.tensor([sigma], dtype=torch.float64)
    scale = boundary_scalings(level, 0.002, 0.5)
    exact = skip in (0.0, 1.0)
    assert scale.skip.item() == (skip if exact else pytest.approx(skip, rel=2e-3 if skip < 1e-3 else 1e-6))
    assert scale.out.item() == (out if exact else pytest.approx(out, abs=2e-6))
    if into is not None:
        assert scale.into.item() == pytest.approx(into, rel=1e-4)
        assert noise_condition(level).item() == pytest.approx(noise, abs=1e-4)


def test_a_denoiser_has_its_boundary_at_zero():
    scale = edm_scalings(torch.tensor([1e-12, 0.5]).double(), 0.5)
    assert scale.skip.tolist() == pytest.approx([1.0, 0.5])
    assert scale.out.tolist() == pytest.approx([0.0, 0.5 * 0.5 / 0.5**0.5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sigma_dtype", [torch.float32, torch.float64])
def test_the_identity_at_sigma_min_is_exact(dtype, sigma_dtype):
    net = unet()
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 3

    def run(x, *args, **kwargs):
        return net(x.float(), *args, **kwargs)

    x = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 5).to(dtype)
    f = consistency_function(run, NoiseRange())
    made = f(x, torch.full((2,), 0.002, dtype=sigma_dtype))
    assert made.dtype == dtype
    assert torch.equal(made, x)


def test_ranges_that_are_none_are_refused():
    for wrong in ({"sigma_min": 0.0}, {"sigma_min": 90.0}, {"rho": 0.0}, {"sigma_data": -1.0}):
        with pytest.raises(InputError):
            NoiseRange(**wrong)
    with pytest.raises(ValueError, match="at least 2"):
        NoiseRange().sigmas(1)
