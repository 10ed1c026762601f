import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from lit_insert.mifo.attend import attend


@pytest.mark.parametrize(
    "options",
    [
        {"norm_num_groups": 4, "residual_connection": True, "rescale_output_factor": 2.0},
        {"cross_attention_dim": 12, "cross_attention_norm": "layer_norm", "upcast_attention": True},
        {"cross_attention_dim": 12, "cross_attention_norm": "group_norm", "cross_attention_norm_num_groups": 3},
        {"qk_norm": "layer_norm", "upcast_softmax": True},
        {"spatial_norm_dim": 6, "residual_connection": True},
    ],
)
def test_layers_of_every_kind_come_out_as_by_the_default_processor(options):
    torch.manual_seed(0)
    width = 32 if "spatial_norm_dim" in options else 16  # its norm has 32 groups
    attn = Attention(width, heads=2, dim_head=8, processor=AttnProcessor2_0(), **options).eval()
    hidden = torch.randn(2, 24, width) if "cross_attention_dim" in options else torch.randn(2, width, 4, 6)
    context = torch.randn(2, 5, 12) if "cross_attention_dim" in options else None
    temb = torch.randn(2, 6, 2, 3) if "spatial_norm_dim" in options else None
    kept: list[torch.Tensor] = []
    with torch.no_grad():
        wanted = attn(hidden, context, temb=temb)
        for record in (None, kept.append):
            assert torch.allclose(attend(attn, hidden, context, temb=temb, record=record), wanted, atol=1e-5)
    assert kept[0].shape == (2, 24, 24 if context is None else 5)


def test_diffusers_own_masks_are_honoured():
    torch.manual_seed(0)
    attn = Attention(16, heads=2, dim_head=8, cross_attention_dim=12, processor=AttnProcessor2_0()).eval()
    hidden, context = torch.randn(2, 24, 16), torch.randn(2, 5, 12)
    mask = torch.zeros(2, 1, 5)
    mask[0, :, 3:] = -1e4
    allowed = torch.ones(1, 24, 5, dtype=torch.bool)
    allowed[:, :, 0] = False
    kept: list[torch.Tensor] = []
    with torch.no_grad():
        wanted = attn(hidden, context, attention_mask=mask)
        assert torch.allclose(attend(attn, hidden, context, mask, record=kept.append), wanted, atol=1e-5)
        both = attend(attn, hidden, context, mask, allowed=allowed)
        assert torch.allclose(attend(attn, hidden, context, mask, allowed=allowed, record=kept.append), both, atol=1e-5)
    assert kept[0][0, :, 3:].max() == 0
    assert kept[1][:, :, 0].max() == 0
    assert not torch.allclose(both, wanted)
