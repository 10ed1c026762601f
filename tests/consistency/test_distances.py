import math
from urllib.error import URLError

import pytest
import torch

from lit_insert.consistency.distances import distance_by_name, l1, l2, l2_32, pseudo_huber
from lit_insert.errors import InputError


def pair(side=8):
    g = torch.Generator().manual_seed(0)
    return torch.randn(3, 3, side, side, generator=g), torch.randn(3, 3, side, side, generator=g)


def test_pixel_means():
    a, b = pair()
    assert torch.allclose(l1(a, b), torch.stack([(x - y).abs().mean() for x, y in zip(a, b, strict=True)]))
    assert torch.allclose(l2(a, b), torch.stack([(x - y).square().mean() for x, y in zip(a, b, strict=True)]))


def test_l2_at_32_pixels_ignores_what_is_lost_there():
    flat = torch.zeros(1, 3, 64, 64)
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(32, 32).expand(1, 3, 64, 64)
    assert l2(flat, board).item() == 1
    assert l2_32(flat, board).item() < 1e-12


@pytest.mark.parametrize(("side", "c"), [(32, 0.02993), (64, 0.05986), (256, 0.2394)])
def test_pseudo_huber_takes_the_norm_of_the_whole_picture(side, c):
    a = torch.zeros(1, 3, side, side)
    b = torch.full_like(a, 0.01)
    norm = 0.01 * math.sqrt(a.numel())
    assert pseudo_huber(a, b).item() == pytest.approx(math.sqrt(norm**2 + c**2) - c, rel=2e-4)
    assert pseudo_huber(a, a).item() == 0


def test_without_c_it_is_the_norm_and_still_has_a_gradient_at_zero():
    a, b = pair()
    assert torch.allclose(pseudo_huber(a, b, 0.0), (a - b).flatten(1).norm(dim=1))
    x = a.clone().requires_grad_()
    pseudo_huber(x, a, 0.0).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_names():
    a, b = pair()
    for name in ("l1", "l2", "l2-32", "pseudo_huber"):
        assert distance_by_name(name)(a, b).shape == (3,)
    assert torch.equal(distance_by_name("pseudo_huber", 0.5)(a, b), pseudo_huber(a, b, 0.5))
    with pytest.raises(InputError, match="pseudo_huber"):
        distance_by_name("huber")


def test_missing_perceptual_weights_are_told_in_one_line(monkeypatch):
    import torchmetrics.functional.image.lpips as lpips

    def absent(**kwargs):
        raise URLError("no network")

    monkeypatch.setattr(lpips, "_LPIPS", absent)
    with pytest.raises(InputError, match=r"vgg16-397923af\.pth") as error:
        distance_by_name("lpips")
    assert "\n" not in str(error.value)
