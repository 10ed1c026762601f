import logging

import numpy as np
import pytest

from lit_insert.data.mask_check import MaskReport, looks_inverted


def disc(radius, size=64, y=32, x=32):
    rows, columns = np.mgrid[:size, :size]
    return ((rows - y) ** 2 + (columns - x) ** 2 < radius**2).astype(np.uint8)


def bust():
    mask = disc(14, y=20)
    mask[34:, 8:56] = 1
    return mask


def close_up():
    mask = np.ones((64, 64), np.uint8)
    mask[:20, :12] = mask[:20, 52:] = 0
    return mask


@pytest.mark.parametrize("mask", [disc(20), bust(), close_up(), np.zeros((64, 64)), disc(30)])
def test_objects_do_not_look_inverted(mask):
    assert not looks_inverted(mask)


@pytest.mark.parametrize("mask", [1 - disc(20), 1 - bust(), 1 - disc(5, y=40)])
def test_exchanged_masks_do(mask):
    assert looks_inverted(mask)


def test_a_report_names_what_it_found(caplog):
    report = MaskReport("set")
    for n in range(6):
        report.add(f"bad{n}", 1 - disc(10 + n))
    report.add("good", disc(12))
    report.add("nothing", disc(0))
    report.fail("torn", "truncated")
    assert report.wrong_polarity
    assert not report.all_empty
    with caplog.at_level(logging.WARNING):
        report.warn()
    text = caplog.text
    assert "bad0, bad1" in text
    assert "invert: true" in text
    assert "1 of 9 masks are empty: nothing" in text
    assert "torn" in text
    assert report.as_dict()["empty"] == ["nothing"]


def test_one_odd_mask_is_no_wrong_polarity():
    report = MaskReport("set")
    for n in range(5):
        report.add(f"{n}", disc(10 + n))
    report.add("odd", 1 - disc(8))
    assert not report.wrong_polarity
    assert report.problems() == ["masks that look inverted: odd"]


def test_nothing_to_say_about_good_masks():
    report = MaskReport("set")
    report.add("a", disc(9))
    assert report.problems() == []
