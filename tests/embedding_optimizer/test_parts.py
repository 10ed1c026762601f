import pytest
import torch
from tiny_base import TEXT_LENGTH, write_base
from tiny_insert import components

from lit_insert.diffusion.frozen import empty_prompt_states
from lit_insert.diffusion.unet import has_lora
from lit_insert.embedding_optimizer.ip_adapter import DecoupledAttention, cross_attention_layers
from lit_insert.embedding_optimizer.network import EmbeddingOptimizer
from lit_insert.embedding_optimizer.original import save_original
from lit_insert.embedding_optimizer.parts import UnetTuning, load_parts
from lit_insert.errors import InputError


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(write_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return str(write_base(tmp_path_factory.mktemp("bare"), text=False))


def refusal(*args, **kwargs):
    with pytest.raises(InputError) as caught:
        load_parts(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sizes_follow_the_base(base):
    for adapter, width in (({"heads": 4}, 32), ({"heads": 4, "feature": "pooled"}, 32), ({"mode": "legacy"}, 32)):
        parts = load_parts(base, adapter=adapter)
        config = parts.embedding_optimizer.config
        assert (config["input_dim"], config["output_dim"]) == (width, 32)
        tokens = parts.embedding_optimizer.encode_image(parts.image_encoder, torch.zeros(1, 3, 32, 32))
        assert parts.embedding_optimizer(tokens).shape == (1, 77, 32)
        assert not any(p.requires_grad for p in parts.embedding_optimizer.parameters())


def test_empty_prompt_null_comes_from_the_text_encoder_and_is_saved(base, tmp_path):
    net = load_parts(base, adapter={"heads": 4, "null_kind": "text_empty"}).embedding_optimizer
    states = empty_prompt_states(base)
    assert net.config["num_tokens"] == TEXT_LENGTH
    assert torch.equal(net.null(2), states.expand(2, -1, -1))
    net.save_pretrained(tmp_path)
    assert torch.equal(EmbeddingOptimizer.from_pretrained(tmp_path).null(1), states)
    assert "shape" in refusal(base, adapter={"heads": 4, "null_kind": "text_empty", "num_tokens": 5})


def test_without_text_encoder_the_base_adapters_null_is_taken(bare, tmp_path):
    assert "neither text_encoder/ nor embedding_optimizer/" in refusal(bare, adapter={"mode": "ip"})
    folder = write_base(tmp_path, text=False, own_adapter=True)
    own = load_parts(str(folder)).embedding_optimizer
    net = load_parts(str(folder), adapter={"heads": 4, "null_kind": "text_empty"}).embedding_optimizer
    assert own.null(1).any()
    assert torch.equal(net.null(1), own.null(1))


@pytest.mark.parametrize("mode", ["ip", "ip_plus"])
def test_ip_adapter_is_attached_and_starts_from_the_unet(base, mode):
    parts = load_parts(base, adapter={"mode": mode, "heads": 1})
    net = parts.embedding_optimizer
    layers = cross_attention_layers(parts.unet)
    assert all(isinstance(layer.processor, DecoupledAttention) for layer in layers)
    assert torch.equal(net.ip.layers[0].to_k_ip.weight, layers[0].to_k.weight)
    assert torch.equal(net.null_embedding, empty_prompt_states(base))
    if mode == "ip_plus":
        zeros = net.encode_image(parts.image_encoder, torch.zeros(1, 3, 32, 32))
        assert torch.equal(net.null_features, zeros)


def test_a_widened_entry_trains_whatever_the_tuning(tmp_path):
    folder = str(write_base(tmp_path, channels=4))
    for target in ("none", "attn2", "lora", "all"):
        parts = load_parts(folder, adapter={"heads": 4}, unet=UnetTuning(target))
        assert parts.unet.config["in_channels"] == 8
        assert {"conv_in.weight", "conv_in.bias"} <= set(parts.tuned)
        assert len(parts.tuned) == len(set(parts.tuned))


def test_tuning_from_plain_values(base):
    assert load_parts(base, adapter={"heads": 4}).tuned == []
    parts = load_parts(base, adapter={"heads": 4}, unet={"target": "lora", "rank": 2})
    assert has_lora(parts.unet)
    assert parts.tuned
    assert "no block 'down_blocks.9'" in refusal(base, adapter={"heads": 4}, unet=UnetTuning(blocks=["down_blocks.9"]))


def test_adapter_weights_of_every_kind(base, tmp_path):
    def perturbed(**adapter):
        net = load_parts(base, adapter=adapter).embedding_optimizer
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        return net

    for adapter, name in (
        ({"mode": "legacy"}, "emb_opt.pt"),
        ({"mode": "ip"}, "ip.bin"),
        ({"mode": "ip_plus", "heads": 1}, "plus.safetensors"),
    ):
        net = perturbed(**adapter)
        save_original(net, tmp_path / name)
        again = load_parts(base, adapter=adapter, adapter_weights=str(tmp_path / name)).embedding_optimizer
        assert all(torch.equal(p, q) for p, q in zip(again.parameters(), net.parameters(), strict=True))
    net = perturbed(heads=4)
    net.save_pretrained(tmp_path / "model" / "embedding_optimizer")
    for source in (tmp_path / "model", tmp_path / "model" / "embedding_optimizer"):
        again = load_parts(base, adapter={"heads": 4}, adapter_weights=str(source)).embedding_optimizer
        assert all(torch.equal(p, q) for p, q in zip(again.parameters(), net.parameters(), strict=True))
    assert "absent.pt" in refusal(base, adapter={"mode": "legacy"}, adapter_weights=str(tmp_path / "absent.pt"))


def test_bad_adapters_are_refused(base):
    assert "adapter.mode is 'x'" in refusal(base, adapter={"mode": "x"})
    assert "unexpected keyword argument 'head'" in refusal(base, adapter={"head": 4})
    assert "heads=5 does not divide" in refusal(base, adapter={"heads": 5})
    assert "no embedding_optimizer/" in refusal(base)  # none given, none to keep


def test_training_and_inference_preprocess_alike(base):
    from lit_insert.data.transforms import TripletTransform, clip_processor

    picture = components()["feature_extractor"]
    parts = load_parts(base, adapter={"heads": 4})
    from PIL import Image

    white = Image.new("RGB", (48, 40), "white")
    trained = TripletTransform(32, clip_processor(32)).reference(white)
    inferred = parts.feature_extractor([white], return_tensors="pt").pixel_values[0]
    assert torch.equal(trained, inferred)
    assert torch.equal(trained, picture(white, return_tensors="pt").pixel_values[0])
    assert trained.max() <= 2.2
