"""Pasting another picture's object on top, as an augmentation of pictures with masks."""

import pytest
import torch

from lit_insert.data.loading import BrokenSample
from lit_insert.data.mask_source import MaskedPicture, MaskSource
from lit_insert.data.paired import Augmentation, PairedTransform, paste
from lit_insert.data.people import MaskDataset
from lit_insert.errors import InputError

STILL = {"zoom": (1.0, 1.0), "flip": 0.0, "rotation": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
STILL |= {"hue": 0.0, "grayscale": 0.0, "blur": 0.0}


class Squares(MaskSource):
    """Picture i has grey level 20 i and a white square in corner i."""

    def __init__(self, count=4, broken=()):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def origins(self):
        return set()

    def picture(self, index):
        if index in self.broken:
            raise BrokenSample(str(index), "cannot be read")
        mask = torch.zeros(16, 16, dtype=torch.uint8)
        top, left = 8 * (index // 2), 8 * (index % 2)
        mask[top : top + 8, left : left + 8] = 1
        image = torch.where(mask.bool(), 255, 20 * index).to(torch.uint8).expand(3, 16, 16).clone()
        return MaskedPicture(image, mask, str(index))


def dataset(probability, **source):
    transform = PairedTransform((16, 16), Augmentation(**STILL, paste=probability))
    return MaskDataset(Squares(**source), transform, train=True)


def test_the_other_object_lies_on_top():
    plain, pasted = dataset(0.0), dataset(1.0)
    seen = set()
    for index in range(4):
        for epoch in range(6):
            own, both = plain.sample(index, epoch), pasted.sample(index, epoch)
            assert both["id"] == own["id"] == str(index)
            added = (both["mask"] == 1) & (own["mask"] == 0)
            seen.add(int(added.sum()))
            assert (both["mask"][own["mask"] == 1] == 1).all()
            changed = (both["image"] - own["image"]).abs().amax(0, keepdim=True) > 0.35
            assert torch.equal(changed, added)  # the blended rim changes less
    assert seen == {0, 64}  # itself, or one of the other corners


def test_the_same_draw_gives_the_same_picture():
    first, second = (dataset(0.5).sample(2, 7) for _ in range(2))
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["mask"], second["mask"])


def test_how_often():
    data = dataset(0.4, count=50)
    data.source.picture = lambda i: Squares().picture(i % 4)
    added = [float(data.sample(i, e)["mask"].sum()) > 64 for i in range(50) for e in range(8)]
    assert sum(added) / len(added) == pytest.approx(0.4 * 0.75, abs=0.08)


def test_an_unreadable_other_is_left_out():
    data = dataset(1.0, broken=(1, 2, 3))
    for epoch in range(5):
        assert data.sample(0, epoch)["mask"].sum() == 64
    with pytest.raises(BrokenSample):
        data.sample(1, 0)


def test_what_the_other_ignores_stays():
    image = torch.zeros(3, 8, 8)
    mask = torch.zeros(1, 8, 8)
    mask[:, :2] = 255
    other = torch.zeros(1, 8, 8)
    other[:, 4:] = 255
    other[:, 1:3] = 1
    result = paste({"image": image, "mask": mask, "id": "a"}, {"image": image + 1, "mask": other, "id": "b"})
    assert result["mask"][0, :, 0].tolist() == [255, 1, 1, 0, 0, 0, 0, 0]


def test_a_probability_is_asked_for():
    with pytest.raises(InputError, match="paste is 2"):
        Augmentation(paste=2)
