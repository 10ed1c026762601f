"""Upsampling, bottleneck and the way maps of any size come together."""

import pytest
import torch
from torch.nn import functional as F

from lit_insert.mask_decoder.decoder import Bottleneck, FPNDecoder, PresenceHead, Upsample, conv_norm


def test_untrained_upsampling_repeats_pixels():
    torch.manual_seed(0)
    layer = Upsample(6, 5)
    x = torch.randn(2, 6, 4, 3)
    y = layer(x)
    assert y.shape == (2, 5, 8, 6)
    assert torch.equal(y, F.interpolate(y[..., ::2, ::2], scale_factor=2, mode="nearest"))
    layer.conv.weight.data = torch.randn_like(layer.conv.weight)  # and a trained one need not
    assert not torch.equal(layer(x)[..., ::2, ::2], layer(x)[..., 1::2, 1::2])


def test_bottleneck_mixes_all_places_and_keeps_the_shape():
    torch.manual_seed(0)
    block = Bottleneck(16, 2, 4).eval()
    x = torch.randn(1, 16, 3, 5)
    y = block(x)
    assert y.shape == x.shape
    other = x.clone()
    other[:, 0, 0, 0] += 3
    assert (block(other) - y)[..., 2, 4].abs().max() > 1e-6
    turned = block(x.flip(-1)).flip(-1)  # it has no idea of places of its own
    assert torch.allclose(turned, y, atol=1e-5)
    with pytest.raises(ValueError, match="bottleneck_heads=3 does not divide"):
        Bottleneck(16, 1, 3)


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_logits_have_the_pictures_size(stride, size):
    decoder = FPNDecoder([4, 8, 12, 16], 8, (8, 4))
    maps = [torch.randn(2, c, size[0] // (stride << i), size[1] // (stride << i)) for i, c in enumerate((4, 8, 12, 16))]
    assert decoder(maps, torch.randn(2, 3, *size)).shape == (2, 1, *size)


def test_the_stem_sees_single_pixels():
    torch.manual_seed(0)
    decoder = FPNDecoder([4, 8], 8, (8, 4))
    maps = [torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 4, 4)]
    image = torch.zeros(1, 3, 32, 32)
    image[..., 10, 11] = 5
    logits = decoder(maps, image)[0, 0]
    assert logits[10, 11] != logits[10, 25]


@pytest.mark.parametrize("width", [1, 4, 6, 8, 24, 96, 128])
def test_groups_divide_any_width(width):
    groups = conv_norm(3, width)[1].num_groups
    assert width % groups == 0
    assert groups == 1 or width // groups >= 4 or width < 4


def test_presence_reads_mean_and_maximum():
    torch.manual_seed(0)
    head = PresenceHead(4)
    even = torch.randn(1, 4, 1, 1).abs().expand(1, 4, 4, 4)
    spot = torch.zeros(1, 4, 4, 4)
    spot[..., 1, 2] = 16 * even[..., 0, 0]  # of the same mean
    values = head(torch.cat([even, spot, even.flip(1)]))
    assert values.shape == (3,)
    assert values[0] != values[1]
    assert values[0] != values[2]
    moved = head(torch.roll(spot, (1, 1), (2, 3)))
    assert torch.allclose(moved, values[1:2])
