"""Masks from files."""

import numpy as np
import pytest
from PIL import Image
from tiny_segmenters import picture

from lit_insert.errors import InputError
from lit_insert.segmenters.base import Segmenter
from lit_insert.segmenters.loading import load_segmenter


@pytest.fixture
def folder(tmp_path):
    masks = np.zeros((3, 80, 120), np.uint8)
    masks[0, 5:20, 10:30] = 255
    masks[1, 40:60, 50:90] = 200
    masks[2] = 255
    (tmp_path / "b").mkdir()
    for name, mask in zip(("red_circle_2", "Red-Circle-10", "b/dog"), masks, strict=True):
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    return tmp_path


def test_files_become_instances_in_order_of_their_scores(folder):
    segmenter = load_segmenter("given", folder)
    assert isinstance(segmenter, Segmenter)
    circles, dogs = segmenter.instances(picture(), ["red circle", "dog"])
    assert [t.box for t in circles] == [(10, 5, 20, 15), (50, 40, 40, 20)]
    assert circles.presence == 1
    assert len(dogs) == 0
    assert dogs.presence == 0
    assert len(segmenter.instances(picture(), ["red circle"], threshold=0.9)[0]) == 1
    heat = segmenter.heatmaps(picture(), ["red circle", "dog"])
    assert heat[0, 10, 15] == 1
    assert float(heat[0, 50, 60]) == pytest.approx(200 / 255)
    assert heat[1].sum() == 0


def test_a_picture_may_have_masks_of_its_own(folder):
    segmenter = load_segmenter("given", folder)
    (dogs,) = segmenter.instances(segmenter.encode(picture(), "b"), ["dog"])
    assert dogs.found[0].area == 80 * 120


def test_a_mask_of_another_size_is_named(folder):
    segmenter = load_segmenter("given", folder)
    with pytest.raises(InputError, match=r"red_circle_2.png: 120x80 pixels, but its picture has 60x40"):
        segmenter.instances(picture(60, 40), ["red circle"])


def test_the_folder_must_be_there(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load_segmenter("given", tmp_path / "none")
    with pytest.raises(InputError, match="name the folder"):
        load_segmenter("given")
