import pytest
import torch
from tiny_insert import components

from lit_insert.embedding_optimizer.network import EmbeddingOptimizer

MODES = {
    "perceiver": {"input_dim": 24, "num_tokens": 5, "heads": 4},
    "legacy": {"input_dim": 24, "num_tokens": 5},
    "ip": {"input_dim": 24, "layer_dims": [32, 64], "text_tokens": 3},
    "ip_plus": {"input_dim": 24, "layer_dims": [32, 64], "text_tokens": 3, "heads": 1, "input_tokens": 9},
}
TOKENS = {"perceiver": 5, "legacy": 5, "ip": 3 + 4, "ip_plus": 3 + 16}


def make(mode, **more):
    torch.manual_seed(0)
    return EmbeddingOptimizer(output_dim=32, mode=mode, **{**MODES[mode], **more}).eval()


def features(mode, batch):
    return torch.randn(batch, 1 if mode == "ip" else 9, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", MODES)
def test_shape_determinism_and_independence_of_the_batch(mode):
    net, x = make(mode), features(mode, 4)
    out = net(x)
    assert out.shape == (4, TOKENS[mode], 32)
    assert torch.equal(out, net(x))
    assert torch.allclose(net(x[2:3])[0], out[2], atol=1e-5)
    assert not torch.allclose(out[0], out[1], atol=1e-3)
    assert net.null(3).shape == (3, TOKENS[mode], 32)


@pytest.mark.parametrize("mode", MODES)
def test_save_and_load(mode, tmp_path):
    net = make(mode)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1)
        if net.config["null_kind"] != "zeros":
            net.null_embedding.normal_()
    net.save_pretrained(tmp_path)
    again = EmbeddingOptimizer.from_pretrained(tmp_path)
    x = features(mode, 2)
    assert torch.equal(again(x), net(x))
    assert torch.equal(again.null(2), net.null(2))


def test_real_sizes():
    net = EmbeddingOptimizer()
    assert net(torch.randn(2, 257, 1024)).shape == (2, 77, 768)
    assert EmbeddingOptimizer(mode="legacy")(torch.randn(1, 257, 1024)).shape == (1, 77, 768)


def test_output_starts_at_the_scale_of_text_states():
    out = make("perceiver")(features("perceiver", 8))
    assert float(out.detach().std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("null", "stored", "trains"), [("learned", 1, True), ("text_empty", 1, False), ("zeros", 0, False)]
)
def test_null_kinds(null, stored, trains):
    net = make("perceiver", null_kind=null)
    assert sum("null" in key for key in net.state_dict()) == stored
    assert ("null_embedding" in dict(net.named_parameters())) is trains
    assert not net.null(2).any()
    states = torch.randn(1, 5, 32)
    net.set_null(states)
    assert torch.equal(net.null(2)[1], states[0])
    with pytest.raises(ValueError, match="shape"):
        net.set_null(states[:, :2])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"feature": "first"}, "feature is 'first'"),
        ({"null_kind": "none"}, "null_kind is 'none'"),
        ({"mode": "magic"}, "mode is 'magic'"),
        ({"heads": 5}, "heads=5 does not divide"),
        ({"mode": "ip", "null_kind": "learned"}, "use text_empty"),
        ({"mode": "ip", "feature": "last"}, "ip reads pooled"),
        ({"mode": "ip_plus", "feature": "pooled"}, "ip_plus last or penultimate"),
    ],
)
def test_bad_choices_are_named(options, reason):
    with pytest.raises(ValueError, match=reason):
        EmbeddingOptimizer(input_dim=8, output_dim=32, layer_dims=[8], **options)


@pytest.mark.parametrize(("feature", "tokens"), [("last", 17), ("penultimate", 17), ("pooled", 1)])
def test_features_are_those_of_the_encoder(feature, tokens):
    encoder = components()["image_encoder"]
    net = make("perceiver", input_dim=32, feature=feature)
    pixels = torch.randn(2, 3, 32, 32)
    out = encoder(pixels, output_hidden_states=True)
    wanted = {
        "last": out.hidden_states[-1],  # before the final norm
        "penultimate": out.hidden_states[-2],
        "pooled": out.image_embeds[:, None],
    }[feature]
    got = net.encode_image(encoder, pixels)
    assert got.shape == (2, tokens, 32)
    assert torch.equal(got, wanted)
