"""One thing, one mask."""

import itertools

import numpy as np
import pytest

from lit_insert.grounding.nms import Labelled, suppress
from lit_insert.segmenters.base import Instance


def thing(label: str, box: tuple[int, int, int, int], score: float) -> Labelled:
    mask = np.zeros((60, 80), bool)
    x, y, width, height = box
    mask[y : y + height, x : x + width] = True
    return Labelled(label, Instance.from_mask(mask, score))


CAR = thing("car", (10, 10, 40, 30), 0.9)
SAME = thing("vehicle", (11, 10, 40, 30), 0.8)  # the same under another name
WHEEL = thing("wheel", (12, 30, 10, 10), 0.7)  # a part of it
BITE = thing("car", (12, 12, 15, 15), 0.6)  # a part of it that has its name
OTHER = thing("dog", (60, 5, 15, 20), 0.5)
BESIDE = thing("car", (52, 30, 20, 20), 0.4)


def test_duplicates_go_and_parts_stay_whatever_the_order():
    for order in itertools.permutations([CAR, SAME, WHEEL, BITE, OTHER, BESIDE]):
        kept = suppress(order)
        assert kept == [t for t in order if t in (CAR, WHEEL, OTHER, BESIDE)]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"iou": 1.1, "containment": 1.1}, 4),  # nothing is a duplicate
        ({"iou": 1.1}, 2),  # nearly whole inside the other: containment alone
        ({"part": 0.01}, 1),  # nothing is a mere part
        ({"containment": 1.1}, 3),
    ],
)
def test_each_setting_matters(options, left):
    assert len(suppress([CAR, SAME, WHEEL, BITE], **options)) == left


def test_of_equals_the_label_that_says_more_stays():
    plain, exact = thing("car", (5, 5, 20, 20), 0.9), thing("red car", (5, 5, 20, 20), 0.9)
    assert suppress([plain, exact]) == suppress([exact, plain]) == [exact]


def test_overlap_is_that_of_whole_masks():
    generator = np.random.default_rng(0)
    for _ in range(30):
        masks = generator.random((2, 30, 40)) < generator.random()
        one, two = (Labelled(n, Instance.from_mask(m, s)) for n, m, s in zip("ab", masks, (0.9, 0.8), strict=True))
        iou = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
        assert len(suppress([one, two], iou=float(iou) + 1e-9, containment=2)) == 2
        assert len(suppress([one, two], iou=float(iou) - 1e-9, containment=2)) == 1
    assert suppress([]) == []
