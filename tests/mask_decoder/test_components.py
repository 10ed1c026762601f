import numpy as np
import pytest

from lit_insert.errors import InputError
from lit_insert.mask_decoder.components import keep_components


@pytest.fixture
def mask():
    """Parts of 12, 4 and 1 pixels in 100."""
    mask = np.zeros((10, 10), bool)
    mask[0:3, 0:4] = True
    mask[5:7, 6:8] = True
    mask[9, 0] = True
    return mask


def sizes(mask, **options):
    return int(keep_components(mask, **options).sum())


def test_all_and_largest(mask):
    assert sizes(mask) == 17
    assert sizes(mask, components="largest") == 12
    assert keep_components(mask, "largest")[0:3, 0:4].all()


@pytest.mark.parametrize(("area", "left"), [(0.01, 17), (0.02, 16), (0.04, 16), (0.05, 12), (0.5, 0)])
def test_small_areas_are_fractions(mask, area, left):
    assert sizes(mask, min_area=area) == left
    assert sizes(mask, min_area=area * 100) == left or area * 100 < 1  # and whole ones pixels


def test_both_together(mask):
    assert sizes(mask, components="largest", min_area=13) == 0
    assert sizes(mask, components="largest", min_area=12) == 12


def test_corners_connect_and_holes_stay(mask):
    mask[7, 8] = True  # touches the four by a corner
    assert sizes(mask, min_area=5) == 12 + 5
    ring = np.ones((5, 5), bool)
    ring[2, 2] = False
    assert sizes(ring, components="largest") == 24


def test_empty_stays_empty():
    assert sizes(np.zeros((4, 6), bool), components="largest", min_area=3) == 0


def test_mistakes(mask):
    with pytest.raises(InputError, match="components is 'biggest'"):
        keep_components(mask, "biggest")
    for wrong in (-1, float("nan")):
        with pytest.raises(InputError, match="min_area"):
            keep_components(mask, min_area=wrong)
