import cv2
import numpy as np
import pytest

from lit_insert.replace.colour import match_lab


def noisy(mean, spread, seed=0):
    values = np.random.default_rng(seed).normal(mean, spread, (40, 40, 3))
    return np.clip(values, 0, 255).astype(np.uint8)


def lab(pixels):
    return cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3)


THING, REFERENCE = noisy((90, 120, 140), 14), noisy((150, 110, 100), 18, 1)
ALL = np.ones((40, 40), np.float32)


def test_strength_one_takes_mean_and_spread():
    matched = lab(match_lab(THING, ALL, REFERENCE, ALL, 1.0))
    assert np.allclose(matched.mean(0), lab(REFERENCE).mean(0), atol=0.5)
    assert np.allclose(matched.std(0), lab(REFERENCE).std(0), rtol=0.05)


def test_strength_is_the_way_between():
    half = lab(match_lab(THING, ALL, REFERENCE, ALL, 0.5)).mean(0)
    assert np.allclose(half, (lab(THING).mean(0) + lab(REFERENCE).mean(0)) / 2, atol=0.5)


def test_nothing_changes_without_strength_or_weight():
    assert np.array_equal(match_lab(THING, ALL, REFERENCE, ALL, 0.0), THING)
    assert np.array_equal(match_lab(THING, ALL, REFERENCE, 0 * ALL, 1.0), THING)


def test_only_weighted_pixels_count():
    weight = ALL.copy()
    weight[20:] = 0
    other = REFERENCE.copy()
    other[20:] = 0
    first = match_lab(THING, ALL, REFERENCE, weight, 1.0)
    assert np.array_equal(first, match_lab(THING, ALL, other, weight, 1.0))


@pytest.mark.parametrize(("spread", "gain"), [(0.0, 0.6), (60.0, 1.6)])
def test_contrast_changes_within_bounds(spread, gain):
    matched = lab(match_lab(THING, ALL, noisy((128, 128, 128), spread, 2), ALL, 1.0))
    assert np.isclose(matched[:, 0].std() / lab(THING)[:, 0].std(), gain, rtol=0.03)
