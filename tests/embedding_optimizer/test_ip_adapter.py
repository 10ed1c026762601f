import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_insert import components

from lit_insert.embedding_optimizer.ip_adapter import cross_attention_layers
from lit_insert.embedding_optimizer.network import EmbeddingOptimizer
from lit_insert.embedding_optimizer.original import save_original, to_original
from lit_insert.embedding_optimizer.pipeline import InsertPipeline

KINDS = {"ip": {"input_dim": 24}, "ip_plus": {"input_dim": 24, "hidden_dim": 64, "heads": 1, "input_tokens": 9}}


def unet():
    return components()["unet"]


def adapter(mode, model, perturb=0.05):
    torch.manual_seed(3)
    dims = [layer.to_k.out_features for layer in cross_attention_layers(model)]
    net = EmbeddingOptimizer(output_dim=32, mode=mode, layer_dims=dims, text_tokens=6, **KINDS[mode]).eval()
    net.ip.copy_text_projections(model)
    with torch.no_grad():
        net.null_embedding.normal_()
        for p in net.parameters():
            p.add_(perturb * torch.randn_like(p))
    return net


def inputs(mode):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 8, 8, 8, generator=generator)
    features = torch.randn(2, 1 if mode == "ip" else 9, 24, generator=generator)
    return x, torch.tensor([3, 700]), features


@pytest.mark.parametrize("mode", KINDS)
@pytest.mark.parametrize("pools", [False, True])
@torch.no_grad()
def test_scale_zero_is_no_adapter(mode, pools):
    model, (x, t, features) = unet(), inputs(mode)
    if pools:  # a UNet whose time embedding has the text in it, too
        extra = {"addition_embed_type": "text", "addition_embed_type_num_heads": 4}
        model = UNet2DConditionModel.from_config({**model.config, **extra}).eval()
    net = adapter(mode, model)
    plain = model(x, t, net.null_embedding.expand(2, -1, -1)).sample
    net.attach(model)
    net.attach(model)  # twice is as once
    with_image = model(x, t, net(features)).sample
    assert not torch.allclose(with_image, plain, atol=1e-3)
    net.set_scale(0)
    assert torch.equal(model(x, t, net(features)).sample, plain)


@pytest.mark.parametrize("mode", KINDS)
@torch.no_grad()
def test_diffusers_own_ip_adapter_gives_the_same(mode):
    model, (x, t, features) = unet(), inputs(mode)
    net = adapter(mode, model)
    theirs = unet()
    theirs._load_ip_adapter_weights(to_original(net))
    embeds = features if mode == "ip" else features[:, None]
    text = net.null_embedding.expand(2, -1, -1)
    wanted = theirs(x, t, text, added_cond_kwargs={"image_embeds": [embeds]}).sample
    net.attach(model)
    assert torch.allclose(model(x, t, net(features)).sample, wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["ip_adapter.safetensors", "ip_adapter.bin"])
def test_diffusers_pipeline_loads_the_file(tmp_path, name):
    parts = components()
    net = adapter("ip", parts["unet"])
    parts["embedding_optimizer"] = EmbeddingOptimizer(input_dim=32, output_dim=32, num_tokens=4, heads=4)
    pipe = InsertPipeline(**parts)
    save_original(net, tmp_path / "sub" / name)
    pipe.load_ip_adapter(str(tmp_path), subfolder="sub", weight_name=name, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.5)
    for layer, own in zip(cross_attention_layers(pipe.unet), net.ip.projections(), strict=True):
        assert torch.equal(layer.processor.to_k_ip[0].weight, own.to_k_ip.weight)
        assert torch.equal(layer.processor.to_v_ip[0].weight, own.to_v_ip.weight)
        assert layer.processor.scale == [0.5]


def test_starts_from_the_text_projections_and_leaves_the_unet_alone():
    model = unet()
    keys = set(model.state_dict())
    net = adapter("ip", model, perturb=0)
    for layer, own in zip(cross_attention_layers(model), net.ip.projections(), strict=True):
        assert torch.equal(own.to_k_ip.weight, layer.to_k.weight)
        assert torch.equal(own.to_v_ip.weight, layer.to_v.weight)
        assert own.to_k_ip.bias is None
    net.attach(model)
    assert set(model.state_dict()) == keys


def test_only_projection_and_image_keys_get_gradients():
    model, (x, t, features) = unet(), inputs("ip")
    net = adapter("ip", model)
    model.requires_grad_(False)
    net.attach(model)
    model(x, t, net(features)).sample.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())
    names = {n.split(".")[1] for n, _ in net.named_parameters()}
    assert names == {"image_proj", "layers"}


def test_null_is_the_projection_of_no_image_after_the_empty_prompt():
    net = adapter("ip", unet())
    null = net.null(2)
    assert torch.equal(null[:, :6], net.null_embedding.expand(2, -1, -1))
    assert torch.equal(null, net(torch.zeros(2, 1, 24)))


def test_another_unet_is_refused():
    model = unet()
    net = EmbeddingOptimizer(input_dim=24, output_dim=32, mode="ip", layer_dims=[8])
    with pytest.raises(ValueError, match=r"widths \[8\], the UNet has"):
        net.attach(model)
    with pytest.raises(ValueError, match="only the ip modes"):
        EmbeddingOptimizer(input_dim=24, output_dim=32, heads=4).set_scale(0)
