import numpy as np
import pytest

from lit_insert.replace.compose import background_difference, blend, change_inside, over, seam_ratio, seamless


def pixels(seed, side=48):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def disc(side=48, radius=12):
    y, x = np.mgrid[:side, :side] - side // 2
    return np.hypot(x, y) <= radius


def smooth(side=48):
    y, x = np.mgrid[:side, :side]
    return np.stack([80 + x, 100 + y, 160 - x], -1).astype(np.uint8)


def test_blend_is_exact_at_both_ends():
    photo, paint = pixels(0), pixels(1)
    alpha = np.clip(np.random.default_rng(2).normal(0.5, 0.7, (48, 48)), 0, 1).astype(np.float32)
    mixed = blend(photo, paint, alpha)
    assert np.array_equal(mixed[alpha == 0], photo[alpha == 0])
    assert np.array_equal(mixed[alpha == 1], paint[alpha == 1])
    weight = alpha[..., None].astype(np.float64)
    assert np.abs(mixed - (photo * (1 - weight) + paint * weight)).max() <= 0.5 + 1e-3


def test_layers_cover():
    assert np.allclose(over(np.array([0.0, 0.5, 1.0]), np.array([0.5, 0.5, 0.2])), [0.5, 0.75, 1.0])
    assert over(np.zeros(3, np.float32), np.zeros(3, np.float32)).max() == 0


def test_the_background_difference_sees_a_single_step():
    photo, alpha = pixels(0), disc().astype(np.float32)
    result = blend(photo, pixels(1), alpha)
    assert background_difference(photo, result, alpha) == 0
    result[0, 0, 2] = photo[0, 0, 2] ^ 1
    assert background_difference(photo, result, alpha) == 1
    assert background_difference(photo, 255 - photo, np.ones((48, 48))) == 0


def test_change_inside():
    photo, mask = smooth(), disc()
    assert change_inside(photo, photo, mask) == 0
    assert change_inside(photo, photo + np.uint8(10), mask) == pytest.approx(10)
    assert change_inside(photo, 255 - photo, np.zeros((48, 48), bool)) == 0


def test_a_seam_shows_in_the_ratio():
    photo, alpha = smooth(), disc().astype(np.float32)
    assert seam_ratio(photo, photo, alpha, 4) == pytest.approx(1, abs=0.05)
    assert seam_ratio(photo, blend(photo, photo + np.uint8(60), alpha), alpha, 4) > 8
    assert seam_ratio(photo, photo, np.zeros((48, 48)), 4) is None
    assert seam_ratio(photo, photo, np.ones((48, 48)), 4) is None


def test_seamless_paint_is_not_moved_and_loses_its_offset():
    photo, where = smooth(), disc()
    assert np.abs(seamless(photo, photo, where).astype(int) - photo).max() <= 2
    fitted = seamless(photo + np.uint8(40), photo, where).astype(int)
    assert np.abs(fitted - photo)[where].mean() < 4


def test_seamless_at_the_border_and_nowhere():
    photo, paint = smooth(), pixels(1)
    assert np.array_equal(seamless(paint, photo, np.zeros((48, 48), bool)), paint)
    assert seamless(paint, photo, np.ones((48, 48), bool)).shape == photo.shape
