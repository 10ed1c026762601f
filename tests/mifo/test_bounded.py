import pytest
import tiny_text
import torch

from lit_insert.mifo.attention import layers_of
from lit_insert.mifo.bounded import BoundedAttention, Regions, cross_mask, self_mask
from lit_insert.mifo.boxes import Box, rasterise
from lit_insert.mifo.prompts import PromptTokens

LEFT, RIGHT = Box("a", 0, 0, 0.5, 1), Box("b", 0.5, 0.25, 1, 1)
# start, a, SUBJECT 0, and, SUBJECT 1, beach, end, padding
TOKENS = PromptTokens(torch.zeros(1, 8, dtype=torch.long), ((2,), (4,)), (1, 3), 6)


@pytest.fixture(scope="module")
def unet():
    return tiny_text.unet()


def inputs(batch=2, tokens=8):
    draw = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(batch, 4, 16, 16, generator=draw),
        "timestep": torch.tensor([300] * batch),
        "encoder_hidden_states": torch.randn(batch, tokens, 32, generator=draw),
    }


def test_without_bounds_it_is_the_default_bit_for_bit(unet):
    attention = BoundedAttention()
    with torch.no_grad():
        plain = unet(**inputs()).sample
        with attention.attached(unet):
            assert torch.equal(unet(**inputs()).sample, plain)
            attention.bound(Regions([LEFT]), PromptTokens(TOKENS.ids, ((2,),), (), 6))
            assert not torch.allclose(unet(**inputs()).sample, plain)
            attention.bound(None)
            assert torch.equal(unet(**inputs()).sample, plain)


@pytest.mark.parametrize("guiding", [False, True])
def test_words_are_for_their_own_region(guiding):
    inside = rasterise([LEFT, RIGHT], 4, 4)[None]
    mask = cross_mask(inside, TOKENS, guiding=guiding).unflatten(1, (4, 4))[0]
    for y in range(4):
        for x in range(4):
            left, right = x < 2, x >= 2 and y >= 1
            outside = not left and not right
            wanted = [
                True,  # start
                False,  # a
                left or (guiding and outside),
                False,  # and
                right or (guiding and outside),
                True,  # beach
                guiding or not outside,
                guiding or not outside,
            ]
            assert mask[y, x].tolist() == wanted


@pytest.mark.parametrize(("who", "inside", "outside"), [("everywhere", True, True), ("nowhere", False, False)])
def test_who_sees_the_end(who, inside, outside):
    mask = cross_mask(rasterise([LEFT, RIGHT], 4, 4)[None], TOKENS, guiding=False, end_tokens=who)[0].unflatten(
        0, (4, 4)
    )
    assert mask[2, 0, 6:].tolist() == [inside] * 2
    assert mask[0, 3, 6:].tolist() == [outside] * 2


def test_pixels_see_their_own_region_and_what_belongs_to_none():
    inside = rasterise([LEFT, RIGHT], 4, 4)[None]
    mask = self_mask(inside)[0]
    left, right = inside[0].flatten(1)
    outside = ~left & ~right
    assert mask[left][:, left].all()
    assert mask[left][:, outside].all()
    assert not mask[left][:, right].any()
    assert not mask[right][:, left].any()
    assert mask[outside].all()
    assert torch.equal(mask, mask.T)


def test_where_regions_overlap_a_pixel_has_both():
    inside = rasterise([Box("a", 0, 0, 0.75, 1), Box("b", 0.25, 0, 1, 1)], 1, 4)[None]
    own = self_mask(inside)[0]
    assert own.tolist() == [
        [True, True, True, False],
        [True, True, True, True],
        [True, True, True, True],
        [False, True, True, True],
    ]
    words = cross_mask(inside, TOKENS, guiding=False)[0][:, [2, 4]]
    assert words.tolist() == [[True, False], [True, True], [True, True], [False, True]]


@pytest.mark.parametrize("guided", [False, True])
def test_attention_stays_within_bounds_in_every_layer(unet, guided):
    layers = layers_of(unet)
    attention = BoundedAttention(layers)
    attention.bound(Regions([LEFT, RIGHT]), TOKENS, guided=guided)
    with torch.no_grad(), attention.attached(unet):
        unet(**inputs(4))
    for layer in layers:
        maps = attention.maps[layer]
        left, right = rasterise([LEFT, RIGHT], *attention.sizes[layer]).flatten(1)
        assert torch.allclose(maps.sum(-1), torch.ones(maps.shape[:2]), atol=1e-5)
        if layer.kind == "self":  # in both halves
            assert maps[:, left][:, :, right].max() < 1e-6
            assert maps[:, right][:, :, left].max() < 1e-6
        else:
            prompted = maps[2:] if guided else maps
            assert prompted[:, left][..., 4].max() < 1e-6
            assert prompted[:, ~left][..., 2].max() < 1e-6
            assert prompted[..., [1, 3]].max() < 1e-6
            if guided:
                assert maps[:2].min() > 0


def test_recording_or_not_gives_the_same_output(unet):
    outputs = []
    for layers in ((), layers_of(unet)):
        attention = BoundedAttention(layers)
        attention.bound(Regions([LEFT, RIGHT]), TOKENS)
        with torch.no_grad(), attention.attached(unet):
            outputs.append(unet(**inputs()).sample)
    assert torch.allclose(*outputs, atol=1e-5)


def test_masks_are_built_once_for_each_resolution(unet):
    attention = BoundedAttention()
    regions = Regions([LEFT, RIGHT])
    with torch.no_grad(), attention.attached(unet):
        attention.bound(regions, TOKENS, guided=True)
        unet(**inputs())
        built = dict(attention._masks)
        assert len(built) == 4  # two kinds, two resolutions
        assert all(mask.dtype == torch.bool for mask in built.values())
        attention.bound(regions, TOKENS, guided=True)
        unet(**inputs())
        assert all(attention._masks[key] is mask for key, mask in built.items())
        attention.bound(Regions([LEFT, RIGHT]), TOKENS, guided=True)
        unet(**inputs())
        assert not any(attention._masks[key] is mask for key, mask in built.items())


def test_regions_of_each_picture_bound_that_picture(unet):
    refined = torch.zeros(2, 2, 8, 8, dtype=torch.bool)
    refined[0, 0, :, :4] = refined[0, 1, :, 4:] = True
    refined[1, 0, :4] = refined[1, 1, 4:] = True
    both, single = [], []
    with torch.no_grad():
        for rows, results in (([0, 1], both), ([0], single), ([1], single)):
            attention = BoundedAttention()
            attention.bound(Regions([LEFT, RIGHT], refined[rows]), TOKENS, guided=True)
            given = inputs(2)
            double = {k: v[rows].repeat(2, *[1] * (v.ndim - 1)) for k, v in given.items()}
            with attention.attached(unet):
                results.append(unet(**double).sample)
    apart = torch.cat([torch.cat([s[:1] for s in single]), torch.cat([s[1:] for s in single])])
    assert torch.allclose(both[0], apart, atol=1e-5)


def test_an_empty_region_falls_back_to_its_box():
    refined = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    refined[0, 0, 3:5, 3:5] = True
    found = Regions([LEFT, RIGHT], refined).at(16, 16)
    assert found.shape == (1, 2, 16, 16)
    assert found[0, 0].sum() == 16
    assert found[0, 0, 6:10, 6:10].all()
    assert torch.equal(found[0, 1], rasterise([RIGHT], 16, 16)[0])
    assert torch.equal(Regions([LEFT]).at(4, 4), rasterise([LEFT], 4, 4)[None])
