import numpy as np
import pytest

from lit_insert.inpainting import METHODS, continue_surround


def ramp(height=90, width=120):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x, y, x // 2 + y // 2], -1).astype(np.uint8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("side", [512, 60])
def test_a_smooth_picture_is_continued(method, side):
    truth, hole = ramp(), np.zeros((90, 120), bool)
    hole[30:50, 40:70] = True
    damaged = np.where(hole[..., None], 255, truth).astype(np.uint8)
    filled = continue_surround(damaged, hole, method=method, side=side)
    assert np.array_equal(filled[~hole], truth[~hole])
    assert np.abs(filled.astype(int) - truth)[hole].mean() < 8


def test_what_is_under_the_hole_does_not_matter_even_at_reduced_size():
    hole = np.zeros((90, 120), bool)
    hole[31:50, 41:70] = True
    first, second = (np.where(hole[..., None], colour, ramp()).astype(np.uint8) for colour in (0, 255))
    assert np.array_equal(continue_surround(first, hole, side=60), continue_surround(second, hole, side=60))
