import numpy as np
import pytest
import torch
from tiny_fusion import seeded

from lit_insert.errors import InputError
from lit_insert.fusion.compose import Composite, Layer, changing_cells, fuse
from lit_insert.letterbox import letterbox

C, G = 6, 8


def maps(seed=0):
    return torch.randn(C, G, G, generator=seeded(seed))


def box(top, left, height, width, value=1.0):
    alpha = torch.zeros(G, G)
    alpha[top : top + height, left : left + width] = value
    return alpha


def test_no_weight_changes_nothing():
    base = maps()
    for layer in (Layer(maps(1), torch.zeros(G, G)), Layer(maps(1), box(2, 2, 3, 3), opacity=0.0)):
        fused = fuse(base, [layer])
        assert torch.equal(fused.features, base)
        assert not fused.union.any()


def test_full_weight_is_the_object_and_the_rest_the_scene():
    base, own, alpha = maps(), maps(1), box(2, 1, 3, 4)
    fused = fuse(base, [Layer(own, alpha)])
    inside = alpha > 0
    assert torch.equal(fused.features[:, inside], own[:, inside])
    assert torch.equal(fused.features[:, ~inside], base[:, ~inside])
    half = fuse(base, [Layer(own, alpha, opacity=0.25)]).features
    assert torch.allclose(half[:, inside], 0.25 * own[:, inside] + 0.75 * base[:, inside])


def test_order_matters_where_objects_meet_and_only_there():
    one, apart, over = (
        Layer(maps(1), box(0, 0, 3, 3)),
        Layer(maps(2), box(4, 4, 3, 3)),
        Layer(maps(3), box(2, 2, 3, 3)),
    )
    base = maps()
    assert torch.equal(fuse(base, [one, apart]).features, fuse(base, [apart, one]).features)
    assert not torch.equal(fuse(base, [one, over]).features, fuse(base, [over, one]).features)
    assert torch.equal(fuse(base, [one, over]).features[:, 2, 2], over.features[:, 2, 2])


def test_overlap_modes():
    one, over = Layer(maps(1), box(0, 0, 3, 3)), Layer(maps(3), box(2, 2, 3, 3))
    base = maps()
    kept = fuse(base, [one, over], "no_overwrite")
    assert torch.equal(kept.features[:, 2, 2], one.features[:, 2, 2])
    assert torch.equal(kept.features[:, 3, 3], over.features[:, 3, 3])
    mixed = fuse(base, [one, over], "alpha").features[:, 2, 2]
    assert torch.allclose(mixed, 0.5 * (one.features + over.features)[:, 2, 2])
    with pytest.raises(InputError, match="overlap_mode 'both'"):
        fuse(base, [one], "both")


def test_union_and_occupied_are_different_things():
    alpha = box(1, 1, 2, 2, 0.5)
    fused = fuse(maps(), [Layer(maps(1), alpha), Layer(maps(2), alpha)])
    assert fused.union[1, 1] == pytest.approx(0.75)
    assert fused.occupied[1, 1] == 1
    assert changing_cells(fused.union).sum() == 4
    assert changing_cells(fused.union, 1).sum() == 16


@pytest.mark.parametrize(("width", "height"), [(96, 96), (31, 90), (400, 20), (8, 8), (1, 1)])
@pytest.mark.parametrize("mode", [3, 4])
def test_the_photo_keeps_its_bytes(width, height, mode):
    side = 32
    frame = letterbox(height, width, (side, side))
    photo = np.random.default_rng(0).integers(0, 256, (height, width, mode)).astype(np.uint8)
    cells = torch.zeros(G, G, dtype=torch.bool)
    cells[3:5, 3:6] = True
    made, plain = torch.rand(3, side, side, generator=seeded(1)), torch.rand(3, side, side, generator=seeded(2))
    result, alpha = Composite(frame, side, cells, torch.zeros(side, side)).photo(photo, made, plain)
    assert result.shape == photo.shape
    assert np.array_equal(result[alpha == 0], photo[alpha == 0])
    if (width, height) == (96, 96):
        rows, columns = np.nonzero(alpha)
        scale = 3  # 96 pixels on 32
        assert rows.min() >= 12 * scale
        assert rows.max() < 20 * scale
        assert columns.min() >= 12 * scale
        assert columns.max() < 24 * scale
        assert alpha.max() == 1
        assert not np.array_equal(result, photo)


def test_nothing_changed_is_the_photo_itself():
    """What the autoencoder loses of the photo is not lost where nothing new is."""
    photo = np.random.default_rng(0).integers(30, 220, (64, 64, 3)).astype(np.uint8)
    decoded = torch.rand(3, 32, 32, generator=seeded(1))
    cells = torch.ones(G, G, dtype=torch.bool)
    frame = letterbox(64, 64, (32, 32))
    result, alpha = Composite(frame, 32, cells, torch.zeros(32, 32)).photo(photo, decoded, decoded)
    assert np.array_equal(result, photo)
    assert (alpha == 1).all(), "the photo's own border is no seam"
    objects = torch.ones(32, 32)
    whole, _ = Composite(frame, 32, cells, objects).photo(photo, torch.full((3, 32, 32), 0.5), decoded)
    assert (np.abs(whole.astype(int) - 128) <= 1).all()
