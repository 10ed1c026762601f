import numpy as np
import pytest
from PIL import Image

from lit_insert.errors import InputError
from lit_insert.replace.region import Region, as_replace_mask, box_of, choose_components, clipped, dig_hole


def three_parts():
    mask = np.zeros((40, 50), bool)
    mask[2:4, 2:4] = True  # 4 pixels
    mask[10:20, 10:20] = True  # 100
    mask[30:35, 30:38] = True  # 40
    return mask


@pytest.mark.parametrize(("which", "pixels"), [("all", 144), ("largest", 100), (0, 100), (1, 40), (2, 4), (3, 0)])
def test_components(which, pixels):
    assert choose_components(three_parts(), which).sum() == pixels


def test_small_components_do_not_count():
    assert choose_components(three_parts(), "all", 0.01).sum() == 140
    assert choose_components(three_parts(), 2, 0.01).sum() == 0


def test_masks_are_scaled_to_the_photo():
    mask = Image.new("L", (55, 45))
    mask.paste(255, (0, 0, 20, 45))
    scaled = as_replace_mask(mask, (110, 90))
    assert scaled.shape == (90, 110)
    assert scaled[:, :39].all()
    assert not scaled[:, 41:].any()


def test_masks_of_another_aspect_are_refused():
    with pytest.raises(InputError, match="55x45 pixels do not fit a photo of 90x110"):
        as_replace_mask(Image.new("L", (55, 45)), (90, 110))


def test_the_region_is_a_square_with_the_box_in_the_middle():
    region = Region.around((20, 30, 30, 50), (100, 100), 1.5)
    assert (region.left, region.top, region.side) == (10, 25, 30)


@pytest.mark.parametrize("box", [(0, 0, 40, 30), (60, 10, 70, 80), (5, 5, 69, 79)])
@pytest.mark.parametrize("scale", [1.5, 4.0, None])
def test_a_crop_put_back_is_the_photo(box, scale):
    photo = np.random.default_rng(0).integers(0, 256, (80, 70, 3), np.uint8)
    region = Region.around(box, (70, 80), scale)
    square = region.crop(photo)
    assert square.shape == (region.side, region.side, 3)
    assert np.array_equal(region.uncrop(square, photo), photo)
    blank = region.uncrop(square, np.zeros_like(photo))
    left, top, right, bottom = clipped(box, (70, 80))
    assert np.array_equal(blank[top:bottom, left:right], photo[top:bottom, left:right])


def test_beyond_the_border_the_photo_is_mirrored():
    photo = np.arange(30, dtype=np.uint8).reshape(5, 6)
    square = Region(-3, -2, 14, (6, 5)).crop(photo)
    assert np.array_equal(square, np.pad(photo, ((2, 7), (3, 5)), mode="reflect"))


def test_the_hole_is_solid_on_the_mask_and_ends_at_twice_the_reach():
    mask = np.zeros((200, 200), bool)
    mask[80:120, 90:110] = True
    hole, alpha = dig_hole(mask, 0.04)
    y, x = np.mgrid[:200, :200]
    distance = np.hypot(np.maximum(np.maximum(90 - x, x - 109), 0), np.maximum(np.maximum(80 - y, y - 119), 0))
    assert np.array_equal(hole, distance <= 8)
    assert (alpha[mask] == 1).all()
    assert (alpha[distance > 16] == 0).all()
    assert 0.3 < alpha[100, 109 + 8] < 0.7
    across = alpha[100, 110:140]
    assert (np.diff(across) <= 0).all()


def test_no_mask_makes_no_hole():
    hole, alpha = dig_hole(np.zeros((20, 20), bool))
    assert not hole.any()
    assert not alpha.any()


def test_box_of_a_single_pixel():
    mask = np.zeros((9, 9), bool)
    mask[4, 7] = True
    assert box_of(mask) == (7, 4, 8, 5)
