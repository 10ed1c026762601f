import pytest
import torch

from lit_insert.data import world
from lit_insert.data.image_scenes import SceneImages
from lit_insert.data.scenes import SceneDataset
from lit_insert.errors import InputError


def test_scenes_are_the_targets_of_the_insertion_triplets():
    pixels, label = SceneImages("val", 20, labels="color", seed=3, held_out=0.15).draw(range(20), 32)
    batch = SceneDataset("val", 20, seed=3).batch(range(20))
    assert torch.equal(pixels, ((batch["target"] + 1) * 127.5).round().to(torch.uint8))
    assert label == batch["label"][:, 1].tolist()
    _, shape = SceneImages("val", 20, labels="shape", seed=3, held_out=0.15).draw(range(20), 32)
    assert shape == batch["label"][:, 0].tolist()


@pytest.mark.parametrize("content", ["scene", "object"])
def test_a_picture_is_the_same_whatever_the_batch(content):
    source = SceneImages(count=30, content=content)
    together, labels = source.draw(range(30), 24)
    for number in (0, 11, 29):
        alone, label = source.draw([number], 24)
        assert torch.equal(alone[0], together[number])
        assert label == labels[number : number + 1]


def test_one_object_of_the_labelled_color_near_the_middle():
    pixels, label = SceneImages(count=60, content="object", labels="color").draw(range(60), 32)
    wanted = (world._RGB[label] * 255)[:, :, None, None]
    like = (pixels - wanted).abs().amax(1) < 70
    assert (like.flatten(1).float().mean(1) > 0.04).all()
    assert like[:, 8:24, 8:24].sum() > 0.7 * like.sum()


def test_splits_differ_and_have_one_distribution_unless_held_out():
    train, test = (SceneImages(s, 10).draw(range(10), 16)[0] for s in ("train", "test"))
    assert not torch.equal(train, test)
    assert len(SceneImages("test")._triples) == len(SceneImages("train")._triples) == 144
    kinds = [set(map(tuple, SceneImages(s, held_out=0.2)._triples.tolist())) for s in ("train", "val", "test")]
    assert len(set.union(*kinds)) == sum(map(len, kinds))


def test_classes():
    assert SceneImages(labels="shape").classes == list(world.SHAPES)
    assert SceneImages(labels="color").classes == list(world.COLORS)
    assert SceneImages().classes == []
    with pytest.raises(InputError, match="classes of one split"):
        SceneImages(labels="shape").use_classes(list(world.COLORS))


def test_limits():
    with pytest.raises(InputError, match="count is 0"):
        SceneImages(count=0)
    with pytest.raises(InputError, match="image_size is 4"):
        SceneImages().draw([0], 4)
