import cv2
import numpy as np
import pytest

from lit_insert.errors import InputError
from lit_insert.rle import decode_rle, encode_rle

# Strings that pycocotools 2.0 writes for these masks.
CORNER = (5, 7), "01:2H000004"
ELLIPSE = (
    (60, 80),
    "fc01f1:I4M2N2M4M2O0O2N2O0O2N2O000O2O0O2O00000O2O000000000000000O20N10000000000000001N1000001N101N10001N2N101N2N101"
    "N3L3N2N3L7FS`0",
)


def corner():
    mask = np.zeros((5, 7), bool)
    mask[1:4, 2:6] = mask[0, 0] = True
    return mask


def ellipse():
    y, x = np.mgrid[:60, :80]
    return (y - 30) ** 2 / 400 + (x - 40) ** 2 / 900 <= 1


@pytest.mark.parametrize(("mask", "expected"), [(corner(), CORNER), (ellipse(), ELLIPSE)])
def test_strings_are_those_of_coco(mask, expected):
    size, text = expected
    assert encode_rle(mask) == {"size": list(size), "counts": text}
    assert (decode_rle(text, size) == mask).all()
    assert (decode_rle(text.encode(), size) == mask).all()


def test_round_trip():
    generator = np.random.default_rng(0)
    for trial in range(60):
        height, width = generator.integers(1, 90, 2)
        mask = generator.random((height, width)) < generator.random()
        if trial % 2:
            mask = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 4) > 0.5
        rle = encode_rle(mask)
        assert (decode_rle(rle["counts"], rle["size"]) == mask).all()
    for value in (0, 1):
        mask = np.full((7, 3), value, np.uint8)
        assert (decode_rle(**encode_rle(mask)) == mask.astype(bool)).all()


def test_plain_lengths_run_down_the_columns():
    mask = decode_rle([1, 2, 3], (3, 2))
    assert mask[:, 0].tolist() == [False, True, True]
    assert not mask[:, 1].any()


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("01:2H00000", "add up to"),
        ([3, 4], "add up to 7 pixels, a mask of 5x7 has 35"),
        ([40, -5], "add up to"),
        ("01:2H00000P", "end in the middle"),
        ("01:2H0~0004", "none of COCO's characters"),
        ("01\N{EN DASH}", "COCO|add up"),
    ],
)
def test_broken_lengths(counts, message):
    with pytest.raises(InputError, match=message):
        decode_rle(counts, (5, 7))
