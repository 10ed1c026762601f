"""Which encoders there are, at which sizes, and where their weights come from."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_mask import ABSWIN, DET, FAMILIES, PLAIN

from lit_insert.errors import InputError
from lit_insert.mask_decoder import encoder
from lit_insert.mask_decoder.network import HieraFPN


@pytest.mark.parametrize("size", [64, 224, [96, 160]])
def test_sizes(size):
    assert encoder.as_size(size) == (tuple(size) if isinstance(size, list) else (size, size))


@pytest.mark.parametrize("size", [0, 16, 250, [224, 250], [224], [64, 64, 64]])
def test_sizes_that_do_not_fit_are_refused(size):
    with pytest.raises(InputError, match=r"img_size is .* multiples of 32, such as"):
        HieraFPN(**PLAIN | {"img_size": size})


def test_unknown_names_and_arguments_are_refused():
    with pytest.raises(InputError, match=r"encoder is 'resnet50'; timm has .*hiera_tiny_224"):
        encoder.make_encoder("resnet50", 64)
    with pytest.raises(InputError, match=r"encoder_kwargs of hiera_tiny_224: .*'width'"):
        encoder.make_encoder("hiera_tiny_224", 64, {"width": 3})
    with pytest.raises(InputError, match=r"stages \[1, 1, 2, 1\], .* some of \[0, 3\] .* such as \[3\]"):
        encoder.make_encoder("hieradet_small", 64, {"stages": [1, 1, 2, 1]})
    for blocks in ([5], [2], [3, 4]):  # there is no such block; the first of a stage pools
        with pytest.raises(InputError, match="no block sees the whole picture"):
            encoder.make_encoder("sam2_hiera_tiny", 64, {"stages": [1, 1, 2, 1], "global_att_blocks": blocks})
    with pytest.raises(InputError, match="deeper third or fourth stage"):
        encoder.make_encoder("hieradet_small", 64, {"stages": [1, 1, 1, 1]})


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_those_of_features_only(family):
    config = FAMILIES[family]
    torch.manual_seed(0)
    own = encoder.make_encoder(config["encoder"], 64, config["encoder_kwargs"]).eval()
    kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in config["encoder_kwargs"].items()}
    sized = {} if encoder.is_dynamic(own) else {"img_size": 64}
    other = timm.create_model(config["encoder"], features_only=True, **kwargs, **sized).eval()
    other.model.load_state_dict(own.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 64)
    maps = encoder.feature_maps(own, x)
    assert [m.shape[1] for m in maps] == encoder.widths(own) == [8, 16, 32, 64]
    assert [64 // m.shape[2] for m in maps] == [4, 8, 16, 32]
    assert all(torch.equal(a, b) for a, b in zip(maps, other(x), strict=True))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", "folder"])
def test_weights_come_back_from_a_file_or_an_exported_folder(tmp_path, suffix):
    torch.manual_seed(0)
    trained = HieraFPN(**PLAIN)
    path = tmp_path / f"weights{suffix}"
    if suffix == "folder":
        trained.save_pretrained(path)
    elif suffix == ".pth":
        torch.save({**trained.backbone.state_dict(), "head.fc.bias": torch.zeros(10)}, path)
    else:
        save_file(trained.backbone.state_dict(), path)
    network = HieraFPN(**PLAIN)
    with pytest.raises(InputError, match=r"freeze_encoder: the encoder's weights are random"):
        network.check_pretrained()
    network.load_encoder(str(path))
    network.check_pretrained()
    assert network.config["encoder_origin"] == path.name
    for name, value in trained.backbone.state_dict().items():
        assert torch.equal(network.backbone.state_dict()[name], value)
    assert not torch.equal(network.decoder.head.weight, trained.decoder.head.weight)


def test_position_embeddings_follow_the_size(tmp_path):
    trained = HieraFPN(**PLAIN | {"img_size": [64, 96]})
    rows = torch.linspace(0, 1, 16)[:, None, None].expand(16, 24, 8)
    trained.backbone.pos_embed.data = rows.reshape(1, 16 * 24, 8).contiguous()
    trained.save_pretrained(tmp_path / "small")
    network = HieraFPN(**PLAIN | {"img_size": [128, 128]})
    network.load_encoder(str(tmp_path / "small"))
    grid = network.backbone.pos_embed.detach().view(32, 32, 8)
    assert torch.allclose(grid, grid[:, :1, :1].expand_as(grid), atol=1e-5)  # still only rows
    assert torch.allclose(grid[:, 0, 0], torch.linspace(0, 1, 32), atol=0.03)  # from top to bottom
    save_file(trained.backbone.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match=r"384 tokens is not 19x19; give the exported folder"):
        network.load_encoder(str(tmp_path / "bare.safetensors"))


@pytest.mark.parametrize("config", [ABSWIN, DET])
def test_tiled_embeddings_need_no_resizing(tmp_path, config):
    trained = HieraFPN(**config)
    trained.save_pretrained(tmp_path / "small")
    network = HieraFPN(**config | {"img_size": 128})
    network.load_encoder(str(tmp_path / "small"))
    for name, value in trained.backbone.state_dict().items():
        assert torch.equal(network.backbone.state_dict()[name], value)


def test_weights_of_another_encoder_are_refused(tmp_path):
    wide = PLAIN | {"encoder_kwargs": PLAIN["encoder_kwargs"] | {"embed_dim": 16}}
    HieraFPN(**wide).save_pretrained(tmp_path / "wide")
    network = HieraFPN(**PLAIN)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(InputError, match=r"encoder_weights .*wide into hiera_tiny_224: .* has shape"):
        network.load_encoder(str(tmp_path / "wide"))
    save_file({"blocks.0.norm1.weight": torch.zeros(8)}, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match=r"part.safetensors into hiera_tiny_224: \d+ tensors are missing"):
        network.load_encoder(str(tmp_path / "part.safetensors"))
    with pytest.raises(InputError, match=r"'nothing': no such file, and timm's tags for hiera_tiny_224 are mae"):
        network.load_encoder("nothing")
    with pytest.raises(InputError, match=r"none.pth: no such file"):
        network.load_encoder(str(tmp_path / "none.pth"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config.json"):
        network.load_encoder(str(tmp_path / "empty"))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert network.config["encoder_origin"] is None


def test_a_tag_is_loaded_by_timm_at_its_own_size(monkeypatch):
    torch.manual_seed(0)
    kwargs = {"embed_dim": 8, "stages": (1, 1, 1, 1)}
    published = timm.create_model("hiera_tiny_224", num_classes=0, **kwargs)
    asked = []

    def create(name, pretrained=False, **options):
        if not pretrained:
            return original(name, pretrained, **options)
        asked.append(name)
        return published

    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    network = HieraFPN(**PLAIN)
    assert not asked  # nothing is downloaded unasked
    for tag in ("mae", "hiera_tiny_224.mae"):
        network.load_encoder(tag)
    assert asked == ["hiera_tiny_224.mae"] * 2
    assert network.config["encoder_origin"] == "timm/hiera_tiny_224.mae"
    assert torch.equal(network.backbone.blocks[3].mlp.fc1.weight, published.blocks[3].mlp.fc1.weight)
    assert network.backbone.pos_embed.shape == (1, 256, 8)


def test_the_origin_is_saved_with_the_network(tmp_path):
    HieraFPN(**PLAIN).save_pretrained(tmp_path / "a")
    network = HieraFPN(**PLAIN)
    network.load_encoder(str(tmp_path / "a"))
    network.save_pretrained(tmp_path / "b")
    assert json.loads((tmp_path / "b/config.json").read_text())["encoder_origin"] == "a"
    HieraFPN.from_pretrained(tmp_path / "b").check_pretrained()
