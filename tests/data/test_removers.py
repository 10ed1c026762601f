import numpy as np
import pytest
from data_samples import scene
from PIL import Image, ImageDraw
from tiny_inpaint import tiny_pipeline

from lit_insert.data.removers import DiffusersRemover, OpenCVRemover, dilated
from lit_insert.errors import InputError


def smooth(size=(120, 90)):
    """A backdrop that is easy to continue, and an object on it."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    back = Image.fromarray(np.stack([x, y, x // 2 + y // 2], -1).astype(np.uint8))
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((40, 25, 80, 65), fill=255)
    with_object = back.copy()
    with_object.paste("red", mask=mask)
    return back, with_object, mask


@pytest.mark.parametrize("side", [512, 60])
def test_opencv_takes_the_object_away_and_leaves_the_rest(side):
    back, with_object, mask = smooth()
    result = np.asarray(OpenCVRemover(side=side)(with_object, mask, "x")).astype(int)
    untouched = ~dilated(mask, 0.02)
    assert np.array_equal(result[untouched], np.asarray(with_object)[untouched])
    error = np.abs(result - np.asarray(back))[~untouched]
    assert error.mean() < 8
    assert error.max() < 60


def test_masks_grow_and_lose_their_holes():
    mask = Image.new("L", (100, 100))
    draw = ImageDraw.Draw(mask)
    draw.rectangle((20, 20, 79, 79), fill=255)
    draw.rectangle((40, 40, 59, 59), fill=0)
    grown = dilated(mask, 0.05)
    assert grown[50, 50]
    assert np.flatnonzero(grown.any(0))[[0, -1]].tolist() == [15, 84]


def test_an_empty_mask_changes_nothing():
    back, _, _ = smooth()
    assert np.array_equal(OpenCVRemover()(back, Image.new("L", back.size), "x"), back)


def test_a_diffusers_pipeline_replaces_the_hole_only_and_repeats_itself(tmp_path):
    folder = tiny_pipeline(tmp_path / "tiny")
    remover = DiffusersRemover(str(folder), steps=2, side=32, device="cpu")
    _, target, mask = scene(0, shape=(80, 64))
    first = np.asarray(remover(target, mask, "a"))
    assert first.shape == (64, 80, 3)
    assert np.array_equal(first, np.asarray(remover(target, mask, "a")))
    assert not np.array_equal(first, np.asarray(remover(target, mask, "b")))
    far = ~dilated(mask, 0.12)
    assert np.array_equal(first[far], np.asarray(target)[far])
    inside = np.asarray(mask) > 0
    assert np.abs(first.astype(int) - np.asarray(target))[inside].mean() > 10


def test_what_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no model_index\.json"):
        DiffusersRemover(str(tmp_path))
    with pytest.raises(InputError, match="no inpainting pipeline"):
        DiffusersRemover("owner/nothing-of-the-kind")
