import pytest
import torch
from diffusers import AutoencoderRAE
from tiny_fusion import RAE, autoencoder, seeded, space

from lit_insert.errors import InputError
from lit_insert.fusion.latents import (
    LatentSpace,
    LatentStatistics,
    load_autoencoder,
    set_statistics,
    start_autoencoder,
)


def test_there_and_back():
    tiny = space()
    pictures = torch.rand(3, 3, 32, 32, generator=seeded())
    features = tiny.encode(pictures.requires_grad_())
    assert features.shape == (3, *tiny.shape) == (3, 64, 8, 8)
    assert not features.requires_grad
    assert tiny.decode(features).shape == (3, 3, 32, 32)
    assert tiny.autoencoder.training is False
    assert not any(p.requires_grad for p in tiny.parameters())


def test_other_sizes_are_refused_instead_of_resized():
    tiny = space()
    with pytest.raises(InputError, match="3x32x48; the encoder takes 3x32x32"):
        tiny.encode(torch.rand(1, 3, 32, 48))
    with pytest.raises(InputError, match="64x4x4; the decoder takes 64x8x8"):
        tiny.decode(torch.zeros(1, 64, 4, 4))


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = autoencoder()
    set_statistics(model, torch.linspace(-1, 1, 64), torch.linspace(0.5, 2, 64))
    model.save_pretrained(tmp_path / "rae")
    again = load_autoencoder(tmp_path / "rae")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    pictures = torch.rand(2, 3, 32, 32, generator=seeded())
    assert torch.equal(LatentSpace(model).encode(pictures), LatentSpace(again).encode(pictures))
    assert (tmp_path / "rae/config.json").stat().st_size < 20_000
    mean = (LatentSpace(model).encode(pictures) * (model._latents_std + 1e-5) + model._latents_mean).mean((0, 2, 3))
    plain = LatentSpace(autoencoder()).encode(pictures).mean((0, 2, 3))
    assert torch.allclose(mean, plain, atol=1e-4)


def test_what_does_not_work_says_so(tmp_path):
    with pytest.raises(InputError, match="'siglip2': not supported"):
        start_autoencoder({**RAE, "encoder_type": "siglip2"}, None, None)
    config = tmp_path / "siglip"
    autoencoder().save_pretrained(config)
    text = (config / "config.json").read_text().replace('"mae"', '"siglip2"')
    (config / "config.json").write_text(text)
    with pytest.raises(InputError, match="use dinov2 or mae"):
        load_autoencoder(config)
    with pytest.raises(InputError, match="one of them"):
        start_autoencoder(None, None, None)
    with pytest.raises(InputError, match=r"autoencoder: .*patch_sise"):
        start_autoencoder({**RAE, "patch_sise": 3}, None, None)
    with pytest.raises(InputError, match="no such folder"):
        load_autoencoder("runs/nowhere.at.all")


def test_a_pretrained_encoder_moves_in(tmp_path):
    donor = autoencoder(5).encoder
    donor.layernorm = torch.nn.LayerNorm(64)  # as published, with scale and shift
    donor.config.save_pretrained(tmp_path)
    donor.save_pretrained(tmp_path)
    taken = start_autoencoder(RAE, None, str(tmp_path))
    pictures = torch.rand(2, 3, 32, 32, generator=seeded())
    assert torch.allclose(LatentSpace(taken).encode(pictures), space(5).encode(pictures), atol=1e-4)
    with pytest.raises(InputError, match=r"shape|weights"):
        start_autoencoder({**RAE, "encoder_hidden_size": 128}, None, str(tmp_path))


def test_statistics_are_those_of_all_together():
    features = torch.randn(24, 5, 4, 4, generator=seeded()) * torch.arange(1, 6)[:, None, None] + 3
    features[0] *= 50
    flat = features.double().transpose(0, 1).flatten(1)
    results = []
    for order, size in ((range(24), 24), (range(24), 5), (reversed(range(24)), 1), (range(24), 7)):
        statistics = LatentStatistics(5)
        for part in torch.tensor(list(order)).split(size):
            statistics.update(features[part])
        results.append(statistics.compute())
    for found in results:
        assert torch.allclose(found["mean"], flat.mean(1), atol=1e-9)
        assert torch.allclose(found["std"], flat.std(1, unbiased=False), atol=1e-9)
    normal = (flat - results[1]["mean"][:, None]) / results[1]["std"][:, None]
    assert normal.mean(1).abs().max() < 1e-5
    assert (normal.std(1, unbiased=False) - 1).abs().max() < 1e-3


def test_statistics_of_several_processes_are_merged():
    features = torch.randn(9, 3, 2, 2, generator=seeded()) + 2
    whole, parts = LatentStatistics(3), [LatentStatistics(3) for _ in range(3)]
    whole.update(features)
    for part, rows in zip(parts, features.split([5, 4, 0]), strict=True):
        if len(rows):
            part.update(rows)
    merged = LatentStatistics(3)
    for name in ("count", "mean", "squares"):  # as torchmetrics stacks the states of all processes
        setattr(merged, name, torch.stack([getattr(p, name) for p in parts]))
    merged._update_count = 1
    for key, value in whole.compute().items():
        assert torch.allclose(merged.compute()[key], value, atol=1e-12)
    empty = LatentStatistics(3)
    empty._update_count = 1
    with pytest.raises(InputError, match="no features"):
        empty.compute()


def test_the_encoder_of_diffusers_is_as_described():
    """What this file guards against: it adds noise, and trains, unless it is told not to."""
    model = AutoencoderRAE(**RAE, noise_tau=0.5).train()
    pictures = torch.rand(1, 3, 32, 32, generator=seeded())
    assert model.encoder.training
    assert not torch.equal(model.encode(pictures).latent, model.encode(pictures).latent)
    tiny = LatentSpace(model)
    assert torch.equal(tiny.encode(pictures), tiny.encode(pictures))
