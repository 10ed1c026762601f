import pytest
import torch

from lit_insert.data import world
from lit_insert.data.mask_scenes import MaskScenes
from lit_insert.errors import InputError


def test_scenes_are_a_function_of_their_number():
    scenes = MaskScenes("val", 40, size=48)
    images, masks = scenes.draw(list(range(10)))
    for n in (0, 4, 9):
        picture = scenes.picture(n)
        assert torch.equal(picture.image, images[n])
        assert torch.equal(picture.mask, masks[n])
        assert picture.id == f"scene-val-{n}"
    assert images.dtype == masks.dtype == torch.uint8
    assert set(masks.unique().tolist()) == {0, 1}


def test_masks_are_where_things_change_the_picture():
    full, bare = (MaskScenes("train", 30, size=64, empty=e) for e in (0.0, 1.0))
    (with_things, masks), (without, nothing) = full.draw(list(range(30))), bare.draw(list(range(30)))
    assert not nothing.any()
    changed = (with_things != without).any(1)
    # Anti-aliased edges and thin corners change too, a pixel or two from the mask.
    near = torch.nn.functional.max_pool2d(masks[:, None].float(), 5, 1, 2)[:, 0].bool()
    assert (changed & ~near).sum() < 0.002 * changed.sum()
    assert (changed & masks.bool()).sum() > 0.99 * masks.sum()


def test_a_quarter_is_empty_yet_has_places():
    scenes = MaskScenes("train", 400, size=32)
    images, masks = scenes.draw(list(range(400)))
    empty = ~masks.flatten(1).bool().any(1)
    assert 0.19 < empty.float().mean() < 0.31
    # The disc that a thing would stand on is still darker than the scene without: background that looks like one.
    index = torch.arange(400)
    plain = world.draw_background(world.lay_out(index, seed=0, triples=scenes.triples).background, 32)
    assert ((plain * 255).round() - images.float()).flatten(1).amax(1)[empty].min() > 10


def test_splits_share_neither_scenes_nor_leading_kinds():
    kinds = {s: {tuple(t) for t in MaskScenes(s, 4).triples.tolist()} for s in ("train", "val", "test")}
    assert not kinds["train"] & (kinds["val"] | kinds["test"])
    assert not kinds["val"] & kinds["test"]
    first = [MaskScenes(s, 4, size=32, empty=0).picture(0).image for s in ("train", "val", "test")]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


def test_any_size_shows_the_same_scene():
    small, large = (MaskScenes("test", 6, size=s, empty=0).draw(list(range(6)))[1] for s in (40, 200))
    shrunk = torch.nn.functional.interpolate(large[:, None].float(), size=40, mode="area")[:, 0] >= 0.5
    assert (shrunk != small.bool()).float().mean() < 0.02


@pytest.mark.parametrize(
    ("options", "message"), [({"size": 8}, "size is 8"), ({"count": 0}, "count"), ({"empty": 2}, "empty")]
)
def test_impossible_scenes(options, message):
    with pytest.raises(InputError, match=message):
        MaskScenes("train", **options)
