import pytest
import torch
from tiny import NETWORK, seeded, unet

from lit_insert.consistency.karras import NoiseRange
from lit_insert.consistency.network import (
    build_unet,
    checked_labels,
    consistency_function,
    copy_all_but_classes,
    edm_denoiser,
)
from lit_insert.errors import InputError


def test_attention_sees_the_whole_map():
    """With convolutions that see one pixel, only attention can carry a change from a corner to the other."""
    net = unet(channel_mult=[1], attention_resolutions=[8])
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            centre = torch.zeros_like(module.weight)
            centre[..., 1, 1] = module.weight[..., 1, 1]
            module.weight.data = centre
        if isinstance(module, torch.nn.GroupNorm):  # its statistics are taken over all pixels
            module.forward = lambda x: x
    x = torch.randn(1, 3, 8, 8, generator=seeded())
    other = x.clone()
    other[..., 0, 0] += 1
    time = torch.tensor([0.0])
    difference = (net(x, time).sample - net(other, time).sample).abs().sum(1)[0]
    assert difference[7, 7] > 1e-6
    for module in net.modules():
        if type(module).__name__ == "Attention":
            module.to_out[0].weight.data.zero_()
    without = (net(x, time).sample - net(other, time).sample).abs().sum(1)[0]
    assert without[7, 7] == 0
    assert without[0, 0] > 0


def test_the_layout_of_published_imagenet_models():
    with torch.device("meta"):
        net = build_unet(64, 192, (1, 2, 3, 4), 3, (32, 16, 8), 64, num_classes=1000)
    config = net.config
    assert list(config.down_block_types) == ["ResnetDownsampleBlock2D", *["AttnDownBlock2D"] * 3]
    assert list(config.up_block_types) == [*["AttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"]
    assert list(config.block_out_channels) == [192, 384, 576, 768]
    assert (config.resnet_time_scale_shift, config.upsample_type, config.downsample_type) == (
        "scale_shift",
        "resnet",
        "resnet",
    )
    assert (config.attention_head_dim, config.attn_norm_num_groups, config.num_class_embeds) == (64, 32, 1000)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(296e6, rel=0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 9},
        {"norm_groups": 3},
        {"attention_resolutions": [5]},
        {"head_dim": 7},
    ],
)
def test_sizes_that_do_not_divide_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        build_unet(**{**NETWORK, **wrong})


def test_a_null_class_is_one_more():
    assert unet(num_classes=3).config.num_class_embeds == 3
    assert unet(num_classes=3, null_class=True).config.num_class_embeds == 4
    assert unet(null_class=True).config.num_class_embeds is None


def test_denoiser_and_consistency_function_differ_by_the_boundary_only():
    net, x = unet(), torch.randn(2, 3, 8, 8, generator=seeded())
    high = torch.full((2,), 40.0)
    f, d = consistency_function(net, NoiseRange()), edm_denoiser(net, NoiseRange())
    assert torch.allclose(f(x, high), d(x, high), atol=1e-3)
    low = torch.full((2,), 0.002)
    assert not torch.equal(d(x, low), x)


def test_copying_between_numbers_of_classes():
    source, target = unet(1, num_classes=3), unet(2, num_classes=5)
    before = target.class_embedding.weight.clone()
    copy_all_but_classes(source, target, "here")
    assert torch.equal(target.class_embedding.weight, before)
    assert torch.equal(target.conv_in.weight, source.conv_in.weight)
    copy_all_but_classes(source, unet(), "here")
    with pytest.raises(InputError, match="there"):
        copy_all_but_classes(unet(channels=16), unet(), "there")


def test_labels_are_checked():
    label = torch.tensor([0, 4])
    assert checked_labels(label, None) is None
    assert checked_labels(label, 5) is label
    with pytest.raises(InputError, match=r"label 4 of b is not in 0\.\.3"):
        checked_labels(label, 4, ["a", "b"])
    with pytest.raises(InputError, match="no 'label'"):
        checked_labels(None, 4)
