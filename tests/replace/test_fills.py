import numpy as np
import pytest

from lit_insert.errors import InputError
from lit_insert.replace.fills import FillRequest, OpenCVFill


def textured(side=64, spread=4.0):
    noise = np.random.default_rng(0).normal(128, spread, (side, side, 3))
    return np.clip(noise, 0, 255).astype(np.uint8)


def hole_of(side=64):
    hole = np.zeros((side, side), bool)
    hole[20:44, 24:40] = True
    return hole


@pytest.mark.parametrize("method", ["telea", "ns"])
def test_only_the_hole_changes(method):
    image, hole = textured(), hole_of()
    damaged = np.where(hole[..., None], np.uint8(255), image)
    filled = OpenCVFill(method)(FillRequest(damaged, hole))
    assert np.array_equal(filled[~hole], image[~hole])
    assert abs(filled[hole].mean() - 128) < 3


def test_grain_is_that_of_the_surround_and_follows_the_seed():
    image, hole = textured(), hole_of()
    plain = OpenCVFill(grain=False)(FillRequest(image, hole))
    grainy = OpenCVFill()(FillRequest(image, hole, seed=1))
    added = (grainy.astype(float) - plain)[hole].std()
    assert 2 < added < 6
    assert np.array_equal(grainy, OpenCVFill()(FillRequest(image, hole, seed=1)))
    assert not np.array_equal(grainy, OpenCVFill()(FillRequest(image, hole, seed=2)))


def test_an_even_wall_gets_no_grain():
    image, hole = np.full((64, 64, 3), 90, np.uint8), hole_of()
    assert np.abs(OpenCVFill()(FillRequest(image, hole)).astype(int) - image).max() <= 2  # OpenCV rounds


def test_nothing_to_continue_is_an_error():
    with pytest.raises(InputError, match="give a fill model"):
        OpenCVFill()(FillRequest(textured(), np.ones((64, 64), bool)))


def test_unknown_methods_are_refused():
    with pytest.raises(InputError, match="'patch': OpenCV's inpainting is telea or ns"):
        OpenCVFill("patch")
