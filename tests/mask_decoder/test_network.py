"""Any size in, the same size out; far places matter; every weight learns."""

import pytest
import timm
import torch
from tiny_mask import FAMILIES, PLAIN, batch

from lit_insert.errors import InputError
from lit_insert.mask_decoder.network import HieraFPN, MaskDecoderOutput, build_network, pad_to

ODD = [(64, 64), (50, 75), (250, 333), (5, 200), (1, 1)]


def network(family="plain", **changes):
    torch.manual_seed(0)
    return HieraFPN(**FAMILIES[family] | changes).eval()


@pytest.mark.parametrize("size", [224, 256])
@pytest.mark.parametrize("name", timm.list_models("*hiera*"))
def test_every_hiera_at_its_full_width(name, size):
    with torch.device("meta"), torch.no_grad():
        net = HieraFPN(name, img_size=size)
        output = net(torch.empty(2, 3, size, size - 6))
    assert output.logits.shape == (2, 1, size, size - 6)
    assert output.presence_logits.shape == (2,)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_goes_in_comes_out_at_the_same_size(family):
    net = network(family)
    for size in ODD:
        output = net(torch.randn(2, 3, *size))
        assert isinstance(output, MaskDecoderOutput)
        assert output.logits.shape == (2, 1, *size)
        assert output.presence_logits.shape == (2,)
        assert output.logits.isfinite().all()


@torch.no_grad()
def test_a_picture_is_padded_not_stretched():
    x = torch.randn(1, 3, 50, 70)
    for family in ("hieradet", "plain"):
        net = network(family, img_size=[64, 96])
        by_hand = net(pad_to(x, (64, 96))).logits[..., :50, :70]
        assert torch.equal(net(x).logits, by_hand)
    # one size only: a larger picture is shrunk until it fits
    large = torch.nn.functional.interpolate(x, (100, 140), mode="bilinear", align_corners=False)
    shrunk = torch.nn.functional.interpolate(large, (64, 90), mode="bilinear", align_corners=False, antialias=True)
    wanted = torch.nn.functional.interpolate(net(shrunk).logits, (100, 140), mode="bilinear", align_corners=False)
    assert torch.allclose(net(large).logits, wanted, atol=1e-5)


def test_padding_mirrors_at_the_far_sides():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert pad_to(x, (2, 5))[0, 0].tolist() == [[0, 1, 2, 1, 0], [3, 4, 5, 4, 3]]
    assert pad_to(x, (2, 8))[0, 0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert pad_to(x[..., :1], (2, 3))[0, 0].tolist() == [[0, 0, 0], [3, 3, 3]]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pixel_far_away_changes_the_output(family):
    net = network(family, img_size=128).double()  # in single precision, a change of 1e-9 would be rounded away
    x = torch.zeros(1, 3, 128, 128, dtype=torch.float64)
    other = x.clone()
    other[..., 2, 3] = 3
    with torch.no_grad():
        change = (net(other).logits - net(x).logits).abs()[0, 0]
    assert change[-1, -1] > 1e-12
    # more than group norms' common shift: different places change differently
    assert change[96:, 96:].std() > 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_reaches_every_weight_and_none_else(family):
    net = network(family, bottleneck_depth=1).train()
    data = batch()
    output = net(net.normalize(data["image"]))
    (output.logits.square().mean() + output.presence_logits.sum()).backward()
    for name, p in net.named_parameters():
        assert p.requires_grad, name
        assert p.grad is not None, name
        assert p.grad.any(), name


def test_normalisation_is_imagenets():
    net = network()
    image = torch.rand(2, 3, 8, 8) * 2 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = ((image + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(net.normalize(image), wanted, atol=1e-6)


def test_saved_networks_come_back(tmp_path):
    net = network(bottleneck_depth=1)
    net.save_pretrained(tmp_path / "net")
    again = HieraFPN.from_pretrained(tmp_path / "net").eval()
    assert {p.name for p in (tmp_path / "net").iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert all(again.config[k] == v for k, v in net.config.items() if isinstance(v, int | str | dict))
    x = torch.randn(1, 3, 60, 64)
    with torch.no_grad():
        assert torch.equal(again(x).logits, net(x).logits)


def test_mistakes_name_the_network():
    with pytest.raises(InputError, match=r"network: .*'encodr'"):
        build_network({"encodr": "hiera_tiny_224"})
    with pytest.raises(InputError, match=r"network\.img_size is 250"):
        build_network({"img_size": 250})
    with pytest.raises(InputError, match=r"network: bottleneck_heads=3 does not divide"):
        build_network(PLAIN | {"bottleneck_depth": 1, "bottleneck_heads": 3})
    with pytest.raises(InputError, match=r"network\.decoder_type is 'unet'"):
        build_network(PLAIN | {"decoder_type": "unet"})
    with pytest.raises(InputError, match=r"network\.presence is 'none'"):
        build_network(PLAIN | {"presence": "none"})
