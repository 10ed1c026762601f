import pytest
import tiny_text
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from lit_insert.errors import InputError
from lit_insert.mifo.attention import AttentionRecorder, layers_of, select_layers


@pytest.fixture(scope="module")
def unet():
    return tiny_text.unet()


def inputs(batch=2, height=16, width=16, tokens=7):
    draw = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(batch, 4, height, width, generator=draw),
        "timestep": torch.tensor([300] * batch),
        "encoder_hidden_states": torch.randn(batch, tokens, 32, generator=draw),
    }


def test_layers_are_named_in_the_order_of_computation(unet):
    layers = layers_of(unet)
    assert [x.place for x in layers] == ["down"] * 4 + ["mid"] * 2 + ["up"] * 8
    assert [(x.place, x.block, x.resolution) for x in layers_of(unet, "cross")] == [
        ("down", 0, 16),
        ("down", 1, 8),
        ("mid", 0, 8),
        *[("up", 0, 8)] * 2,
        *[("up", 1, 16)] * 2,
    ]
    assert [x.index for x in layers_of(unet, "self") if x.place == "up"] == [0, 1, 0, 1]
    assert {x.path for x in layers} == set(unet.attn_processors)


def test_stable_diffusions_layout_has_sixteen_of_each():
    sd = tiny_text.unet(
        64,
        layers_per_block=2,
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    cross = layers_of(sd, "cross")
    assert [x.resolution for x in cross] == [64] * 2 + [32] * 2 + [16] * 2 + [8] + [16] * 3 + [32] * 3 + [64] * 3
    assert len(layers_of(sd, "self")) == 16
    assert [x.place for x in select_layers(sd, ["up:16", "up:32"])] == ["up"] * 6


def test_layers_are_selected_by_place_and_resolution(unet):
    assert select_layers(unet, ["all"]) == layers_of(unet, "cross")
    assert [str(x) for x in select_layers(unet, [":8", "mid"])] == [
        "down1.0.cross@8",
        "mid0.0.cross@8",
        "up0.0.cross@8",
        "up0.1.cross@8",
    ]
    with pytest.raises(InputError, match=r"no cross-attention at 'up:32'; it has down:16, down:8, mid:8, up:8, up:16"):
        select_layers(unet, ["up:32"])
    with pytest.raises(InputError, match="write a place"):
        select_layers(unet, ["up16"])


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (13, 9)])
def test_recording_changes_nothing_and_maps_are_probabilities(unet, size):
    given = inputs(height=size[0], width=size[1])
    layers = layers_of(unet)
    recorder = AttentionRecorder(layers)
    before = dict(unet.attn_processors)
    with torch.no_grad():
        plain = unet(**given).sample
        with recorder.attached(unet):
            watched = unet(**given).sample
    assert torch.allclose(watched, plain, atol=1e-5)
    assert unet.attn_processors == before
    assert set(recorder.maps) == set(layers)
    for layer in layers:
        height, width = recorder.sizes[layer]
        assert (height, width) == layer.size(*size)
        keys = 7 if layer.kind == "cross" else height * width
        assert recorder.maps[layer].shape == (2, height * width, keys)
        assert torch.allclose(recorder.maps[layer].sum(-1), torch.ones(2, height * width), atol=1e-5)
        assert recorder.grid(layer).shape == (2, keys, height, width)


def test_maps_are_those_of_the_latest_forward_only(unet):
    recorder = AttentionRecorder(select_layers(unet, ["up:8"]))
    with torch.no_grad(), recorder.attached(unet):
        unet(**inputs(batch=2))
        first = {k: v.clone() for k, v in recorder.maps.items()}
        unet(**inputs(batch=1, tokens=5))
    assert len(recorder.maps) == 2
    assert all(v.shape == (1, 64, 5) for v in recorder.maps.values())
    assert set(first) == set(recorder.maps)


def test_gradients_flow_through_maps_to_latents_and_lora(unet):
    from copy import deepcopy

    from peft import LoraConfig

    tuned = deepcopy(unet)
    tuned.requires_grad_(False)
    tuned.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights="gaussian"))
    given = inputs()
    given["sample"].requires_grad_(True)
    plain = tuned(**given).sample
    recorder = AttentionRecorder(select_layers(tuned, ["mid"]))
    with recorder.attached(tuned):
        assert torch.allclose(tuned(**given).sample, plain, atol=1e-5)
    sum(m[..., 1].square().sum() for m in recorder.maps.values()).backward()
    assert given["sample"].grad.abs().sum() > 0
    moved = [n for n, p in tuned.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert any("mid_block" in n and "lora_B" in n for n in moved)
    assert not any("up_blocks" in n for n in moved)


def test_gradient_checkpointing_leaves_the_maps_as_they_are(unet):
    from copy import deepcopy

    def loss(model):
        given = inputs()
        given["sample"].requires_grad_(True)
        recorder = AttentionRecorder(select_layers(model, ["all"]))
        with recorder.attached(model):
            output = model(**given).sample
            (output.square().mean() + sum(m[..., 1].square().sum() for m in recorder.maps.values())).backward()
        return given["sample"].grad

    thrifty = deepcopy(unet).train()
    thrifty.enable_gradient_checkpointing()
    assert torch.allclose(loss(thrifty), loss(unet), atol=1e-5)


def test_errors_restore_the_processors(unet):
    before = dict(unet.attn_processors)
    recorder = AttentionRecorder(select_layers(unet, ["up"]))
    with pytest.raises(RuntimeError, match="attached already"), recorder.attached(unet):
        recorder.attach(unet)
    assert unet.attn_processors == before


def test_processors_that_do_more_than_attention_are_refused(unet):
    class IPAdapterAttnProcessor(AttnProcessor2_0):
        pass

    layer = select_layers(unet, ["mid"])[0]
    before = dict(unet.attn_processors)
    unet.set_attn_processor({**before, layer.path: IPAdapterAttnProcessor()})
    try:
        with pytest.raises(InputError, match="IPAdapterAttnProcessor cannot be recorded"):
            AttentionRecorder([layer]).attach(unet)
    finally:
        unet.set_attn_processor(before)
