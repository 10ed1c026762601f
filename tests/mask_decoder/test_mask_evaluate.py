import numpy as np
import pytest
import torch
from PIL import Image

from lit_insert.data.loading import BrokenSample
from lit_insert.data.mask_scenes import MaskScenes
from lit_insert.data.mask_source import MaskedPicture, MaskSource
from lit_insert.mask_decoder.evaluate import differences, evaluate_masks, nothing, photo, picture_rows, unlike_border
from lit_insert.mask_decoder.pipeline import MaskOutput


class Squares(MaskSource):
    """Red squares, of sides 0, 4, 8, ... on blue, in pictures of different sizes; number 3 cannot be read."""

    def __len__(self):
        return 6

    def origins(self):
        return set()

    def picture(self, index):
        if index == 3:
            raise BrokenSample("p3", "torn")
        mask = torch.zeros(40, 50 + index, dtype=torch.uint8)
        mask[5 : 5 + 4 * index, 7 : 7 + 4 * index] = 1
        image = torch.where(
            mask.bool(), torch.tensor([200, 0, 0])[:, None, None], torch.tensor([0, 0, 200])[:, None, None]
        )
        return MaskedPicture(image.to(torch.uint8), mask, f"p{index}")


def shifted(photos):
    """Red pixels, one column too far to the right."""
    masks = [np.roll(np.asarray(p)[..., 0] > 100, 1, axis=1) for p in photos]
    return MaskOutput([Image.fromarray(m.astype(np.uint8) * 255) for m in masks], [], [float(m.any()) for m in masks])


def test_scores_and_order():
    done = []
    found = evaluate_masks(shifted, Squares(), batch_size=4, progress=done.append)
    assert done == [4, 2]
    assert found.broken == ["p3"]
    sides = np.array([4 * i for i in (1, 2, 4, 5)])
    expected = {0: 1.0} | {i: 1 - 2 / (4 * i + 1) for i in (1, 2, 4, 5)}
    assert found.image_iou == pytest.approx(expected)
    overlap, union = (sides * (sides - 1)).sum(), (sides * (sides + 1)).sum()
    assert found.scores["iou"] == pytest.approx(overlap / union, abs=1e-5)
    assert found.scores["boundary_f"] == 1.0
    assert found.scores["presence_accuracy"] == 1.0
    assert found.best(2) == [0, 5]
    assert found.worst(2) == [1, 2]
    rows = picture_rows(shifted, Squares(), found, found.worst(1))
    assert rows[0][0] == "p1: 0.600"
    assert all(p.size == (51, 40) for p in rows[0][1:])


def test_controls():
    source = Squares()
    assert evaluate_masks(unlike_border, source).scores["iou"] == 1.0
    empty = evaluate_masks(nothing, source).scores
    assert empty["iou"] == 0
    assert empty["presence_accuracy"] == pytest.approx(0.2)
    scenes = MaskScenes("test", 8, size=32)
    assert 0.1 < evaluate_masks(unlike_border, scenes).scores["iou"] < 0.9  # scenes are not that easy


def test_differences_are_coloured():
    picture = Squares().picture(2)
    truth = picture.mask.numpy().copy()
    truth[0, 0] = 255
    found = np.zeros_like(truth, bool)
    found[5:9, 7:15] = found[20, 20] = found[0, 0] = True
    shown = np.asarray(differences(photo(picture), found, truth)).astype(int)
    red, green, blue = np.moveaxis(shown, -1, 0)
    assert red[20, 20] > blue[20, 20] + 80
    assert blue[12, 7] > red[12, 7] + 80
    assert min(red[5, 7], green[5, 7], blue[5, 7]) > 150
    assert max(shown[0, 0]) < 100
