import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lit_insert.data.crops import CropRules, cut_object, fault, mask_box, padded
from lit_insert.data.loading import SkippedSample
from lit_insert.errors import InputError

RULES = CropRules(min_side=8)


def refuse(reason):
    return SkippedSample("x", reason)


def ellipse(box, size=(512, 512)):
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return mask


def test_boxes_are_exact_after_jpeg():
    rng = np.random.default_rng(0)
    grown = 0
    for _ in range(50):
        x0, y0 = rng.integers(5, 250, 2)
        w, h = rng.integers(30, 250, 2)
        mask = ellipse((x0, y0, x0 + w, y0 + h))
        stored = io.BytesIO()
        mask.save(stored, "JPEG", quality=75)
        pixels = np.asarray(Image.open(stored))
        assert mask_box(pixels >= 128) == mask.getbbox()
        grown += mask_box(pixels > 0) != mask.getbbox()
    assert grown > 40


def test_boxes_are_half_open():
    present = np.zeros((4, 6), bool)
    present[1, 2] = True
    assert mask_box(present) == (2, 1, 3, 2)
    assert mask_box(np.ones((4, 6), bool)) == (0, 0, 6, 4)
    assert mask_box(np.zeros((4, 6), bool)) is None


@pytest.mark.parametrize(
    ("box", "area", "reason"),
    [
        (None, 0.0, "empty mask"),
        ((10, 10, 41, 200), 0.2, "too small a side"),
        ((10, 10, 60, 60), 0.004, "too small an area"),
        ((1, 1, 500, 500), 0.7, "too large an area"),
        ((0, 0, 512, 400), 0.5, "touches 3 borders"),
        ((0, 0, 400, 400), 0.5, None),
        ((10, 10, 42, 42), 0.005, None),
    ],
)
def test_reasons_for_dropping(box, area, reason):
    assert fault(box, area, (512, 512), CropRules()) == reason


def test_padding_stays_inside_and_squares_where_there_is_room():
    assert padded((100, 100, 200, 150), (512, 512), 0.1, False) == (90, 90, 210, 160)
    assert padded((0, 100, 200, 150), (512, 512), 0.1, False) == (0, 80, 220, 170)
    assert padded((100, 100, 200, 150), (512, 512), 0.1, True) == (90, 65, 210, 185)
    assert padded((100, 0, 200, 50), (512, 512), 0.1, True) == (90, 0, 210, 120)
    assert padded((0, 200, 512, 250), (512, 300), 0.0, True) == (0, 0, 512, 300)


def test_the_crop_holds_the_object_and_its_margin():
    target = Image.new("RGB", (200, 100), "blue")
    mask = ellipse((50, 20, 110, 80), (200, 100))
    target.paste("red", mask=mask)
    crop = cut_object(target, mask, RULES, refuse, at=0.0)
    assert crop.box == (50, 20, 110, 80)
    assert crop.image.size == (66, 66)
    assert crop.area == pytest.approx(np.pi * 30 * 30 / 20000, rel=0.02)
    assert crop.image.getpixel((0, 0)) == (0, 0, 255)
    assert cut_object(target, mask, RULES, refuse, at=1.0).image.size == (72, 72)


@pytest.mark.parametrize(("background", "value"), [("white", 255), ("grey", 128)])
def test_the_background_can_be_wiped(background, value):
    target = Image.new("RGB", (200, 100), "blue")
    mask = ellipse((50, 20, 110, 80), (200, 100))
    target.paste("red", mask=mask)
    image = cut_object(target, mask, CropRules(background=background), refuse).image
    assert image.getpixel((0, 0)) == (value,) * 3
    assert image.getpixel((33, 33)) == (255, 0, 0)
    assert (0, 0, 255) not in {c for _, c in image.getcolors()}


def test_a_mask_of_another_size_is_scaled_to_the_scene():
    target = Image.new("RGB", (400, 200))
    crop = cut_object(target, ellipse((50, 20, 110, 80), (200, 100)), RULES, refuse)
    assert np.abs(np.array(crop.box) - (100, 40, 220, 160)).max() <= 1


def test_dropped_objects_raise_what_the_caller_makes():
    with pytest.raises(SkippedSample, match="x: empty mask"):
        cut_object(Image.new("RGB", (50, 50)), Image.new("L", (50, 50)), RULES, refuse)


@pytest.mark.parametrize("wrong", [{"pad_min": 0.2}, {"min_area": 0.7}, {"max_area": 2}, {"background": "pink"}])
def test_rules_that_cannot_be_are_refused(wrong):
    with pytest.raises(InputError, match="give"):
        CropRules(**wrong)
