import pytest
import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from tiny_fusion import DIT, seeded, transformer

from lit_insert.errors import InputError
from lit_insert.fusion.network import DiTDH, SwiGLU, rotations


def test_published_sizes():
    small = {"encoder_width": 384, "encoder_layers": 12, "encoder_heads": 6}
    for options, millions in (({}, 838.68), (small, 196.46)):
        with torch.device("meta"):
            net = DiTDH(**options)
        # the published count has the fixed table of positions in it
        assert (sum(p.numel() for p in net.parameters()) + net.position.numel()) / 1e6 == pytest.approx(
            millions, abs=0.005
        )


def test_it_starts_with_no_velocity_at_all():
    net = DiTDH(**DIT)
    out = net(torch.randn(2, 64, 8, 8), torch.tensor([0.1, 0.9]), torch.tensor([0, 2])).sample
    assert out.shape == (2, 64, 8, 8)
    assert not out.any()


def test_no_class_is_the_last_row():
    net, x, t = transformer(), torch.randn(2, 64, 8, 8, generator=seeded()), torch.tensor([0.2, 0.7])
    none = net(x, t).sample
    assert torch.equal(none, net(x, t, torch.tensor([3, 3])).sample)
    assert not torch.allclose(none, net(x, t, torch.tensor([0, 1])).sample, atol=1e-4)
    assert not torch.allclose(net(x, t * 0.5).sample, none, atol=1e-4)


def test_a_sample_does_not_see_its_neighbours():
    net, x, t = transformer(), torch.randn(4, 64, 8, 8, generator=seeded()), torch.rand(4, generator=seeded(1))
    label = torch.tensor([0, 1, 2, 3])
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], label[i : i + 1]).sample for i in range(4)])
    assert torch.allclose(net(x, t, label).sample, alone, atol=1e-5)


def test_rotations_are_rows_first():
    cos, sin = rotations(8, 4)
    theirs_cos, theirs_sin = get_2d_rotary_pos_embed(8, ((0, 0), (4, 4)), (4, 4))
    for ours, theirs in ((cos, theirs_cos), (sin, theirs_sin)):  # theirs: columns first
        assert torch.allclose(ours, torch.cat([theirs[:, 4:], theirs[:, :4]], 1), atol=1e-6)
    assert torch.equal(cos.view(4, 4, 8)[2, :, :4], cos.view(4, 4, 8)[2, :1, :4].expand(4, 4))
    angle = 3 / 10000 ** (2 / 4)  # row 3, second pair of the first half
    assert cos.view(4, 4, 8)[3, 1, 2] == pytest.approx(float(torch.cos(torch.tensor(angle))), abs=1e-6)


def test_the_first_half_is_the_gate():
    layer = SwiGLU(4, 6)
    x = torch.randn(3, 4, generator=seeded())
    first, second = layer.w12.weight.split(6), layer.w12.bias.split(6)
    gate, value = (x @ w.T + b for w, b in zip(first, second, strict=True))
    assert torch.allclose(layer(x), layer.w3(gate * gate.sigmoid() * value), atol=1e-6)


def test_checkpointing_changes_no_gradient():
    def gradients(checkpointing):
        net = transformer(0).train()
        if checkpointing:
            net.enable_gradient_checkpointing()
        net(torch.ones(1, 64, 8, 8), torch.tensor([0.5])).sample.square().mean().backward()
        return {n: p.grad for n, p in net.named_parameters() if p.requires_grad}

    plain, saved = gradients(False), gradients(True)
    assert all(torch.allclose(plain[n], saved[n], atol=1e-6) for n in plain)
    assert all(g.any() for n, g in plain.items() if "class_embedding" not in n)


def test_it_reads_what_it_wrote(tmp_path):
    net = transformer()
    net.save_pretrained(tmp_path)
    again = DiTDH.from_pretrained(tmp_path)
    x, t = torch.randn(1, 64, 8, 8, generator=seeded()), torch.tensor([0.4])
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())
    assert torch.allclose(net(x, t).sample, again(x, t).sample, atol=1e-5)


def test_sizes_that_cannot_work_are_refused():
    with pytest.raises(InputError, match="head_width is 32, less than the latent's 64"):
        DiTDH(**{**DIT, "head_width": 32})
    with pytest.raises(InputError, match="encoder_width 36 is no multiple"):
        DiTDH(**{**DIT, "encoder_width": 36})
    with pytest.raises(InputError, match="64x4x4; this transformer takes 64x8x8"):
        transformer()(torch.zeros(1, 64, 4, 4), torch.tensor([0.5]))
