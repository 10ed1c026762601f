"""Instances from masks and heat maps."""

import numpy as np
import pytest
import torch
from PIL import Image

from lit_insert.errors import InputError
from lit_insert.segmenters.base import Instance, check_request, connected, upright


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_an_instance_knows_its_mask_exactly(dtype):
    mask = np.zeros((13, 21), dtype)
    mask[3:9, 5:20] = 1
    mask[4, 5] = 0
    found = Instance.from_mask(mask, 0.75)
    assert found.box == (5, 3, 15, 6)
    assert found.area == 6 * 15 - 1
    assert found.model_box == (5.0, 3.0, 20.0, 9.0)
    assert np.array_equal(found.mask, mask.astype(bool))


def test_an_empty_mask_is_no_instance():
    assert Instance.from_mask(np.zeros((4, 4), bool), 0.9) is None


def test_a_models_box_is_kept_inside_the_picture():
    mask = np.ones((10, 20), bool)
    assert Instance.from_mask(mask, 1, (-3.5, 2.25, 30, 9.5)).model_box == (0.0, 2.25, 20.0, 9.5)


def test_connected_parts_surest_first_and_capped():
    heat = np.zeros((20, 30), np.float32)
    heat[2:6, 2:6] = 0.7
    heat[6, 6] = 0.95  # touches at a corner: the same thing
    heat[10:15, 20:28] = 0.8
    heat[18, 2] = 0.55
    found = connected(heat, 0.6, 0.5, 10)
    assert [round(f.score, 2) for f in found] == [0.95, 0.8]
    assert [f.area for f in found] == [17, 40]
    assert found[0].box == (2, 2, 5, 5)
    assert len(connected(heat, 0.0, 0.5, 10)) == 3
    assert len(connected(heat, 0.0, 0.5, 1)) == 1
    assert not connected(heat, 0.0, 0.97, 10)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"prompts": "dog"}, "list"),
        ({"prompts": ["dog", " "]}, "empty"),
        ({"threshold": 1.0}, "threshold"),
        ({"mask_threshold": -0.1}, "mask_threshold"),
        ({"max_instances": 0}, "max_instances"),
    ],
)
def test_requests_are_checked(change, word):
    with pytest.raises(InputError, match=word):
        check_request(**{"prompts": ["dog"], "threshold": 0.5, "mask_threshold": 0.5, "max_instances": 3} | change)


def test_one_picture_of_any_form_becomes_rgb():
    half = Image.new("RGBA", (4, 3), (255, 0, 0, 0))
    assert upright(half).getpixel((0, 0)) == (255, 255, 255)
    assert upright(torch.zeros(3, 5, 6)).size == (6, 5)
    with pytest.raises(InputError, match="one picture"):
        upright(torch.zeros(2, 3, 5, 6))
