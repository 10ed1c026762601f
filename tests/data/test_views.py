import pytest
import torch
from PIL import Image

from lit_insert.data.transforms import TripletTransform, clip_processor
from lit_insert.data.triplets import Triplet
from lit_insert.data.views import TripletViews


class Stored(TripletViews):
    def __init__(self, train=True, **augment):
        self.transform, self.seed, self.train = TripletTransform(16, clip_processor(16), **augment), 3, train

    def triplet(self, index, generator=None):
        noise = torch.randint(256, (3, 20, 20), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
        image = Image.fromarray(noise.permute(1, 2, 0).numpy())
        return Triplet(image, image, image, Image.new("L", (20, 20), 255), "", f"s{index}")


def test_random_crops_and_references_have_no_countable_views():
    assert Stored(augment=True).views == 0
    assert "augment" in Stored(augment=True).endless
    assert "augment_reference" in Stored(augment="flip", augment_reference=True).endless
    assert Stored(train=False).views == 1


@pytest.mark.parametrize(("augment", "views"), [(False, 1), ("flip", 2)])
def test_a_sample_is_the_view_that_its_epoch_names(augment, views):
    data = Stored(augment=augment, augment_reference=False)
    assert data.views == views
    seen = set()
    for epoch in range(12):
        view = data.view_of(5, epoch)
        seen.add(view)
        sample, expected = data.sample(5, epoch), data.view(5, view)
        assert all(torch.equal(sample[k], expected[k]) for k in ("source", "target", "object", "mask"))
    assert seen == set(range(views))


def test_a_flip_mirrors_the_scene_and_leaves_the_reference():
    data = Stored(augment="flip", augment_reference=False)
    plain, flipped = data.view(0, 0), data.view(0, 1)
    assert torch.equal(flipped["target"], plain["target"].flip(-1))
    assert torch.equal(flipped["object"], plain["object"])


def test_flip_alone_never_crops():
    data = Stored(augment="flip", augment_reference=True)
    plain = data.view(1, 0)["target"]
    for epoch in range(8):
        target = data.sample(1, epoch)["target"]
        assert torch.equal(target, plain) or torch.equal(target, plain.flip(-1))
