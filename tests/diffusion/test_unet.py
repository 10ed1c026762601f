import re

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_insert import components

from lit_insert.diffusion.unet import add_lora, has_lora, merge_lora, select_parameters, widen_conv_in
from lit_insert.errors import InputError

# Cross-attention of Stable Diffusion 1.5: tensors and millions of parameters by block.
SD15 = {
    "down_blocks.0": (10, 1.39),
    "down_blocks.1": (10, 3.61),
    "down_blocks.2": (10, 10.49),
    "mid_block": (5, 5.24),
    "up_blocks.1": (15, 15.73),
    "up_blocks.2": (15, 5.41),
    "up_blocks.3": (15, 2.09),
}


@pytest.fixture(scope="module")
def sd15():
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, in_channels=8, cross_attention_dim=768, attention_head_dim=8)


def millions(unet, names):
    return sum(unet.get_parameter(n).numel() for n in names) / 1e6


def test_sd15_counts(sd15):
    for block, (tensors, size) in SD15.items():
        names = select_parameters(sd15, [block], "attn2")
        assert len(names) == tensors
        assert round(millions(sd15, names), 2) == size
    everything = select_parameters(sd15, [], "attn2")
    assert (len(everything), round(millions(sd15, everything), 2)) == (80, 43.96)
    assert round(millions(sd15, select_parameters(sd15, [], "attn2.kv")), 2) == 19.17
    assert len(select_parameters(sd15, [], "attn2.kv")) == 2 * 16
    intended = select_parameters(sd15, ["down_blocks.2", "mid_block", "up_blocks.1"], "attn2")
    assert round(millions(sd15, intended), 1) == 31.5
    assert round(millions(sd15, select_parameters(sd15, [], "all")), 1) == 859.5
    assert len(intended) == len(set(intended))


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("down_blocks.4", "no block 'down_blocks.4'; it has: .*down_blocks.3.*up_blocks.3.*mid_block"),
        ("up_blocks.0", "'up_blocks.0' has no cross-attention .*: down_blocks.0, .*mid_block"),
        ("down_blocks.3", "'down_blocks.3' has no cross-attention"),
    ],
)
def test_a_block_that_matches_nothing_is_refused_with_the_reason(sd15, block, reason):
    with pytest.raises(InputError) as caught:
        select_parameters(sd15, ["mid_block", block], "attn2")
    assert re.search(reason, str(caught.value))
    assert "\n" not in str(caught.value)


def test_unknown_target_and_no_attention_at_all(sd15):
    with pytest.raises(InputError, match="attn3"):
        select_parameters(sd15, [], "attn3")
    with pytest.raises(InputError, match="no cross-attention"):
        select_parameters(torch.nn.Linear(2, 2), [], "attn2")


def four_channels(bias=True):
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config({**components()["unet"].config, "in_channels": 4}).eval()
    if not bias:
        unet.conv_in.bias = None
    return unet


@pytest.mark.parametrize("bias", [True, False])
def test_widening_keeps_function_and_bias(bias):
    unet = four_channels(bias)
    x, scene, t, h = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([1, 900]), torch.randn(2, 3, 32)
    before, conv = unet(x, t, h).sample, unet.conv_in
    widen_conv_in(unet)
    assert unet.config.in_channels == unet.conv_in.in_channels == 8
    for given in (torch.zeros_like(scene), scene):
        after = unet(torch.cat([x, given], 1), t, h).sample
        assert (after - before).abs().max() < 1e-6
    assert (unet.conv_in.bias is None) is not bias
    if bias:
        assert torch.equal(unet.conv_in.bias, conv.bias)
    assert unet.conv_in.weight.requires_grad


def test_eight_channels_stay_bit_for_bit():
    unet = components()["unet"]
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    conv = unet.conv_in
    assert widen_conv_in(unet) is unet
    assert unet.conv_in is conv
    assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())


def test_other_channel_counts_are_refused():
    unet = UNet2DConditionModel.from_config({**components()["unet"].config, "in_channels": 9})
    with pytest.raises(InputError, match="takes 9 channels"):
        widen_conv_in(unet)


def test_lora_starts_as_nothing_trains_alone_and_merges_into_a_plain_unet():
    unet = components()["unet"]
    keys = set(unet.state_dict())
    x, t, h = torch.randn(2, 8, 8, 8), torch.tensor([1, 900]), torch.randn(2, 3, 32)
    before = unet(x, t, h).sample
    names = add_lora(unet, ["mid_block"], rank=2, alpha=4)
    assert names
    assert all("mid_block" in n and "attn2" in n and ".lora_" in n for n in names)
    assert len(names) == 2 * 4  # A and B of q, k, v and out
    assert {n for n, p in unet.named_parameters() if p.requires_grad} == set(names)
    assert torch.equal(unet(x, t, h).sample, before)
    with torch.no_grad():
        for name in names:
            unet.get_parameter(name).normal_(std=0.2)
    trained = unet(x, t, h).sample
    assert not torch.allclose(trained, before, atol=1e-3)
    merged = merge_lora(unet)
    assert set(merged.state_dict()) == keys
    assert not has_lora(merged)
    assert has_lora(unet)
    assert torch.allclose(merged(x, t, h).sample, trained, atol=1e-5)


def test_lora_refuses_rank_and_block():
    with pytest.raises(InputError, match="rank is 0"):
        add_lora(components()["unet"], [], 0, 1)
    with pytest.raises(InputError, match="no block 'mid'"):
        add_lora(components()["unet"], ["mid"], 2, 1)
