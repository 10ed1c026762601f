"""Masked autoencoding: what is hidden is hidden, patches are where they belong, and the encoder is the same."""

from typing import Any

import pytest
import torch
from tiny_mask import ABSWIN, DET, PLAIN, batch, seeded

from lit_insert.errors import InputError
from lit_insert.mask_decoder.network import HieraFPN
from lit_insert.mask_decoder.pretraining import (
    HieraMAE,
    Reconstruction,
    patchify,
    reconstruction_loss,
    unpatchify,
)
from lit_insert.mask_decoder.pretraining_module import MaskedAutoencoderModule

SIZE = (64, 96)  # 2 x 3 units of 32 pixels, 4 x 6 patches of 16
SMALL = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
ENCODERS = {"plain": PLAIN, "abswin": ABSWIN}


def arguments(family: str = "plain", size: Any = SIZE) -> dict[str, Any]:
    config = ENCODERS[family]
    return {k: config[k] for k in ("encoder", "encoder_kwargs")} | {"img_size": list(size)} | SMALL


def autoencoder(family: str = "plain", size: Any = SIZE) -> HieraMAE:
    torch.manual_seed(0)
    return HieraMAE(**arguments(family, size)).eval()


def test_patches_and_back():
    x = torch.randn(2, 3, *SIZE)
    patches = patchify(x)
    assert patches.shape == (2, 24, 768)
    assert torch.equal(patches[1, 7].view(3, 16, 16), x[1, :, 16:32, 16:32])
    assert torch.equal(unpatchify(patches, SIZE), x)


@pytest.mark.parametrize(("ratio", "kept"), [(0.6, 2), (0.5, 3), (0.99, 1), (0.01, 6)])
def test_as_many_units_in_every_picture_chosen_by_the_generator(ratio, kept):
    net = autoencoder()
    mask = net.draw_kept(50, ratio, seeded(3))
    assert mask.shape == (50, 6)
    assert (mask.sum(1) == kept).all()
    assert torch.equal(mask, net.draw_kept(50, ratio, seeded(3)))
    assert mask.any(0).all()


@pytest.mark.parametrize("family", ENCODERS)
@torch.no_grad()
def test_hidden_pixels_cannot_be_seen(family):
    net = autoencoder(family)
    kept = torch.tensor([[True, False, False, True, False, True]])
    x = torch.randn(1, 3, *SIZE)
    seen = unpatchify((~net(x, kept).hidden)[..., None].float().expand(-1, -1, 768), SIZE)
    assert seen[0, 0, ::32, ::32].flatten().bool().tolist() == kept[0].tolist()
    wanted = net(x, kept).prediction
    assert torch.equal(net(torch.where(seen == 1, x, 7.0), kept).prediction, wanted)
    assert not torch.equal(net(torch.where(seen == 1, 7.0, x), kept).prediction, wanted)


@torch.no_grad()
def test_a_units_features_go_to_its_own_place():
    net = autoencoder()
    net.blocks = torch.nn.ModuleList()  # nothing mixes places any more, save the encoder's late global attention
    for block in net.backbone.blocks:
        block.attn.proj.weight.zero_()  # nor that
    x = torch.randn(1, 3, *SIZE)
    kept = torch.tensor([[False, True, True, True, False, True]])
    other = x.clone()
    other[..., 40:60, 36:60] += torch.randn(20, 24)  # within unit 4, hidden, and
    other[..., 5:12, 70:76] += torch.randn(7, 6)  # within the first row of patches of unit 2
    changed = (net(other, kept).prediction - net(x, kept).prediction).abs().sum(-1) > 1e-6
    assert changed[0].nonzero().flatten().tolist() == [4]


def test_loss_is_of_normalised_hidden_patches():
    x = torch.randn(2, 3, *SIZE)
    hidden = torch.zeros(2, 24, dtype=torch.bool)
    hidden[0, 3] = hidden[1, 20] = True
    prediction = torch.randn(2, 24, 768)
    wanted = 0.0
    for row, n in ((0, 3), (1, 20)):
        patch = patchify(x)[row, n]
        wanted += ((patch - patch.mean()) / patch.std() - prediction[row, n]).square().mean() / 2
    assert torch.allclose(reconstruction_loss(Reconstruction(prediction, hidden), x), wanted, rtol=1e-4)
    other = prediction + ~hidden[..., None] * 5.0
    assert torch.equal(
        reconstruction_loss(Reconstruction(prediction, hidden), x),
        reconstruction_loss(Reconstruction(other, hidden), x),
    )
    flat = reconstruction_loss(Reconstruction(torch.zeros(1, 24, 768), hidden[:1]), torch.ones(1, 3, *SIZE))
    assert flat == 0


@pytest.mark.parametrize("family", ENCODERS)
def test_gradient_reaches_every_weight(family):
    net = autoencoder(family).train()
    x = torch.randn(2, 3, *SIZE)
    reconstruction_loss(net(x, net.draw_kept(2, 0.5, seeded())), x).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


@pytest.mark.parametrize("family", ENCODERS)
def test_its_encoder_starts_a_mask_decoder_of_another_size(tmp_path, family):
    module = MaskedAutoencoderModule(arguments(family))
    module.export(tmp_path / "mae")
    network = HieraFPN(**ENCODERS[family] | {"img_size": 128})
    network.load_encoder(str(tmp_path / "mae"))
    network.check_pretrained()
    trained = module.network.backbone.state_dict()
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, trained[name]) or name == "pos_embed", name
    again = MaskedAutoencoderModule(arguments(family), encoder_weights=str(tmp_path / "mae"))
    assert all(torch.equal(v, trained[k]) for k, v in again.network.backbone.state_dict().items())


def test_it_learns():
    torch.manual_seed(0)
    module = MaskedAutoencoderModule(arguments(size=(64, 64)), optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3))
    optimizer = module.configure_optimizers()
    data = batch(4)
    ramp = torch.linspace(-1, 1, 64)
    data["image"] = (ramp[:, None] * ramp).expand(4, 3, 64, 64) * torch.rand(4, 3, 1, 1, generator=seeded())
    losses = []
    for step in range(40):
        loss = module.compute_loss(data, seeded(step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    rows = module.eval().sample_grid(data, seeded())
    assert [len(row) for row in rows] == [3] * 4
    image, seen, drawn = rows[0]
    assert ((seen == image) | (seen == 0)).all()
    assert torch.equal(drawn[seen != 0], image[seen != 0])


def test_decay_leaves_embeddings_alone():
    module = MaskedAutoencoderModule(arguments("abswin"))
    groups = {g["name"]: g for g in module.parameter_groups()}
    names = {id(p): n.removeprefix("network.") for n, p in module.named_parameters()}
    spared = {names[id(p)] for p in groups["all/no_decay"]["params"]}
    assert {"mask_token", "positions", "backbone.pos_embed", "backbone.pos_embed_win", "norm.weight"} <= spared
    assert all(p.ndim > 1 for p in groups["all"]["params"])
    assert sum(len(g["params"]) for g in groups.values()) == len(names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({k: DET[k] for k in ("encoder", "encoder_kwargs")}, "encoder is 'hieradet_small', which timm cannot mask"),
        ({"decoder_heads": 3}, "decoder_heads=3 does not divide"),
        ({"encoder_kwargs": {"embed_dim": 8, "stages": [1, 1, 1]}}, "four stages"),
        ({"img_size": 100}, "img_size is 100"),
        ({"encodr": "x"}, "network: .*'encodr'"),
    ],
)
def test_mistakes_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        MaskedAutoencoderModule(arguments() | change)
    with pytest.raises(InputError, match="mask_ratio is 1"):
        MaskedAutoencoderModule(arguments(), mask_ratio=1)
