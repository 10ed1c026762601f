import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from lit_insert.consistency import editing
from lit_insert.consistency.sampling import multistep, standard_normal

SIGMAS = [80.0, 5.0, 0.8]


def denoise(x, sigma):
    """Any nonlinear function will do: what is kept must not depend on the model."""
    return torch.tanh(x.roll(1, -1) / (1 + sigma) + 0.3 * x.flip(1))


def pictures(seed, n=2, size=16):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise_of(image, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(image.shape, generator=generator)


@pytest.mark.parametrize("first", [torch.tensor(editing.LUMINANCE), torch.ones(64), torch.tensor([2.0, 0.0, 0.0])])
def test_bases_are_orthogonal_with_the_first_axis_asked_for(first):
    basis = editing.orthogonal_basis(first.double())
    assert torch.allclose(basis @ basis.T, torch.eye(len(first), dtype=torch.float64), atol=1e-12)
    assert torch.allclose(basis[0], first.double() / first.double().norm(), atol=1e-12)


@pytest.mark.parametrize("constraint", [editing.grey_kept(), editing.patch_means_kept(4), editing.nothing_kept()])
def test_inverse_undoes_forward(constraint):
    x = pictures(0)
    assert torch.allclose(constraint.inverse(constraint.forward(x)), x, atol=1e-6)


@pytest.mark.parametrize("start", ["empty", "surround"])
@pytest.mark.parametrize("repeats", [1, 3])
def test_inpainting_keeps_the_rest_to_the_bit_and_changes_the_hole(start, repeats):
    image = pictures(1)
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, 4:11, 3:9] = 1
    made = editing.inpaint(denoise, image, mask, SIGMAS, noise_of(image), start=start, repeats=repeats)
    keep = (mask == 0).expand_as(image)
    assert torch.equal(made[keep], image[keep])
    assert (made[~keep] != image[~keep]).all()


@pytest.mark.parametrize("start", ["empty", "surround"])
def test_what_is_under_the_hole_does_not_matter(start):
    image, mask = pictures(1), torch.zeros(2, 1, 16, 16)
    mask[:, :, 4:11, 3:9] = 1
    other = torch.where(mask.bool(), pictures(9), image)
    made = [editing.inpaint(denoise, x, mask, SIGMAS, noise_of(x), start=start) for x in (image, other)]
    assert torch.equal(*made)


def test_the_mask_says_generate_and_must_be_binary():
    image = pictures(1)
    everything = editing.inpaint(denoise, image, torch.ones(2, 1, 16, 16), SIGMAS, noise_of(image))
    assert (everything != image).all()
    assert torch.equal(editing.inpaint(denoise, image, torch.zeros(2, 1, 16, 16), SIGMAS, noise_of(image)), image)
    with pytest.raises(ValueError, match="threshold"):
        editing.inpaint(denoise, image, torch.full((2, 1, 16, 16), 0.5), SIGMAS, noise_of(image))
    with pytest.raises(ValueError, match="surround"):
        editing.inpaint(denoise, image, torch.ones(2, 1, 16, 16), SIGMAS, noise_of(image), start="grey")


def test_colorize_keeps_every_grey_value():
    image = pictures(2)
    made = editing.colorize(denoise, image, SIGMAS, noise_of(image))
    weights = torch.tensor(editing.LUMINANCE)[:, None, None]
    assert torch.allclose((made * weights).sum(1), (image * weights).sum(1), atol=1e-6)
    assert (made - image).abs().mean() > 0.1


@pytest.mark.parametrize("patch", [2, 8])
def test_superres_keeps_every_block_mean(patch):
    image = pictures(3)
    made = editing.superres(denoise, image, patch, SIGMAS, noise_of(image))
    assert torch.allclose(F.avg_pool2d(made, patch), F.avg_pool2d(image, patch), atol=1e-6)
    low = F.interpolate(F.avg_pool2d(image, patch), scale_factor=patch)
    assert torch.allclose(editing.superres(denoise, low, patch, SIGMAS, noise_of(image)), made, atol=1e-5)
    with pytest.raises(ValueError, match="divide"):
        editing.superres(denoise, image, 3, SIGMAS, noise_of(image))


def test_with_nothing_kept_and_nothing_given_an_edit_is_sampling():
    blank = torch.zeros(2, 3, 16, 16)
    made = editing.sdedit(denoise, blank, SIGMAS, noise_of(blank))
    generator = torch.Generator().manual_seed(0)
    draw = partial(standard_normal, blank.shape, generator, "cpu")
    sampled = multistep(lambda x, s, _: denoise(x, float(s[0])), draw(), SIGMAS, generator=generator, clip=False)
    assert torch.allclose(made, sampled, atol=1e-6)


def test_levels_are_noised_as_the_paper_says():
    """Algorithm 4: the start gets σ₁ z, a later level sqrt(σ² - ε²) z."""
    seen = []

    def spy(x, sigma):
        seen.append((x, sigma))
        return torch.zeros_like(x)

    image = torch.zeros(1, 3, 4, 4)
    editing.edit(
        spy, image, editing.nothing_kept(), [3.0, 0.5], lambda: torch.ones(1, 3, 4, 4), sigma_min=0.3, repeats=2
    )
    assert [s for _, s in seen] == [3.0, 3.0, 0.5, 0.5]
    expected = [3.0, math.sqrt(9 - 0.09), 0.4, 0.4]
    assert [float(x.mean()) for x, _ in seen] == pytest.approx(expected)


def test_sdedit_stays_near_its_picture_from_a_low_level():
    image = pictures(4)
    near, far = (editing.sdedit(lambda x, s: x, image, [s], noise_of(image)) for s in (0.01, 1.0))
    assert (near - image).abs().mean() < 0.02 < (far - image).abs().mean()


def test_slerp_ends_where_it_should_and_keeps_the_size_of_noise():
    a, b = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    between = editing.slerp(a, b, torch.linspace(0, 1, 5))
    assert torch.allclose(between[0], a, atol=1e-6)
    assert torch.allclose(between[-1], b, atol=1e-6)
    assert torch.allclose(between.std((1, 2, 3)), torch.ones(5), atol=0.03)
    assert torch.allclose(editing.slerp(a, a, torch.tensor([0.3]))[0], a)


def test_interpolation_meets_the_ends():
    a, b = 80 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    draw = torch.randn(1, 3, 16, 16)
    made = editing.interpolate(denoise, a, b, torch.linspace(0, 1, 4), SIGMAS[:2], lambda: draw)
    alone = denoise(denoise(b[None], 80.0) + math.sqrt(25 - 0.002**2) * draw, 5.0)
    assert torch.allclose(made[-1], alone[0], atol=1e-5)
    assert len(made) == 4


def test_blurred_surround():
    image = torch.full((1, 3, 13, 10), 0.7)
    image[..., 5:] = -0.2
    mask = torch.zeros(1, 1, 13, 10)
    mask[..., 4:9, 1:4] = 1
    image[..., 4:9, 1:4] = 99.0
    filled = editing.blurred_surround(image, mask)
    assert filled.shape == image.shape
    assert torch.allclose(filled[..., 4:9, 1:3], torch.tensor(0.7), atol=0.3)
    assert filled.max() < 1
    assert torch.equal(editing.blurred_surround(image, torch.ones_like(mask)), torch.zeros_like(image))
