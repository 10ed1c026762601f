from copy import deepcopy

import pytest
import tiny_text
import torch
from safetensors.torch import save_file

from lit_insert.artifacts.resolve import resolve_model
from lit_insert.errors import InputError
from lit_insert.mifo.artifact import MifoArtifact

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture(scope="module")
def parts():
    return tiny_text.components()


@pytest.fixture
def artifact():
    draw = torch.Generator().manual_seed(0)
    return MifoArtifact(
        base="pocket:text",
        tokens={f"<asset{i}>": torch.randn(32, generator=draw) for i in range(2)},
        lora={
            f"unet.{LAYER}.lora.down.weight": torch.randn(2, 32, generator=draw),
            f"unet.{LAYER}.lora.up.weight": torch.randn(32, 2, generator=draw),
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight": torch.ones(
                1, 32
            ),
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight": torch.ones(32, 1),
        },
        changed={"unet.conv_in.bias": torch.ones(16)},
        words={"<asset0>": "circle"},
        synthesis={"guidance_scale": 3.0},
        facts={"mode": "joint"},
    )


def test_what_is_saved_comes_back(artifact, tmp_path):
    artifact.save(tmp_path / "m")
    loaded = MifoArtifact.load(tmp_path / "m")
    assert resolve_model(tmp_path / "m").kind == "folder"
    for name in ("base", "words", "synthesis", "facts"):
        assert getattr(loaded, name) == getattr(artifact, name)
    for name in ("tokens", "lora", "changed"):
        mine, theirs = getattr(artifact, name), getattr(loaded, name)
        assert list(mine) == list(theirs) if name == "tokens" else set(mine) == set(theirs)
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_tokens_alone_are_a_model_folder_too(artifact, tmp_path):
    few = MifoArtifact(artifact.base, artifact.tokens)
    few.save(tmp_path / "m")
    assert sorted(p.name for p in (tmp_path / "m").rglob("*")) == [
        "asset0.safetensors",
        "asset1.safetensors",
        "config.json",
        "tokens",
    ]
    assert resolve_model(tmp_path / "m").kind == "folder"
    artifact.save(tmp_path / "m")
    few.save(tmp_path / "m")  # and leaves nothing of the larger one
    assert not list((tmp_path / "m").glob("*.safetensors"))


def test_applied_to_a_base_it_changes_what_it_names_and_nothing_else(artifact, parts):
    unet, text, words = (deepcopy(parts[k]) for k in ("unet", "text_encoder", "tokenizer"))
    artifact.apply(unet, text, words)
    ids = words("a photo of <asset0> and <asset1>").input_ids[1:-1]
    assert len(ids) == 6
    rows = text.get_input_embeddings().weight
    assert torch.equal(rows[ids[3]], artifact.tokens["<asset0>"])
    assert torch.equal(rows[ids[5]], artifact.tokens["<asset1>"])
    old = parts["text_encoder"].get_input_embeddings().weight
    assert torch.equal(rows[: len(old)], old)
    before, after = parts["unet"].state_dict(), unet.state_dict()
    assert {k for k in before if not torch.equal(before[k], after[k])} == {f"{LAYER}.weight", "conv_in.bias"}
    down, up = artifact.lora[f"unet.{LAYER}.lora.down.weight"], artifact.lora[f"unet.{LAYER}.lora.up.weight"]
    assert torch.allclose(after[f"{LAYER}.weight"], before[f"{LAYER}.weight"] + up @ down, atol=1e-5)
    changed = {
        k for k, v in parts["text_encoder"].state_dict().items() if not torch.equal(v, text.state_dict()[k][: len(v)])
    }
    assert changed == {"encoder.layers.0.self_attn.q_proj.weight"}


def test_the_files_load_in_a_stock_pipeline(artifact, parts, tmp_path):
    from diffusers import StableDiffusionPipeline

    del artifact.lora["text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight"]
    del artifact.lora["text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight"]
    artifact.changed = {}
    artifact.save(tmp_path / "m")
    mine = deepcopy(parts)
    artifact.apply(mine["unet"], mine["text_encoder"], mine["tokenizer"])
    stock = StableDiffusionPipeline(
        **deepcopy(parts), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    stock.load_textual_inversion(
        [str(tmp_path / "m" / "tokens" / f"asset{i}.safetensors") for i in range(2)], token=["<asset0>", "<asset1>"]
    )
    stock.load_lora_weights(str(tmp_path / "m"))
    prompt = "a photo of <asset0> and <asset1>"
    ids = stock.tokenizer(prompt, return_tensors="pt").input_ids
    given = {"sample": torch.ones(1, 4, 16, 16), "timestep": torch.tensor([10])}
    with torch.no_grad():
        theirs = stock.unet(**given, encoder_hidden_states=stock.text_encoder(ids).last_hidden_state).sample
        ids = mine["tokenizer"](prompt, return_tensors="pt").input_ids
        ours = mine["unet"](**given, encoder_hidden_states=mine["text_encoder"](ids).last_hidden_state).sample
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda a: a.tokens.update({"red</w>": torch.zeros(32)}),
            "token red.*: the tokenizer of the base has it already",
        ),
        (lambda a: a.tokens.update({"<x>": torch.zeros(8)}), "token <x>: its row has 8 numbers, .* takes 32"),
        (lambda a: a.changed.update({"unet.nothing": torch.zeros(1)}), "unet.nothing .* does not fit the base"),
        (lambda a: a.lora.update({"unet.conv_in.lora.down.weight": torch.zeros(1, 2)}), "conv_in.* does not fit"),
        (lambda a: a.lora.update({"unet.conv_in.weight": torch.zeros(1)}), "not diffusers'"),
    ],
)
def test_what_does_not_fit_is_refused(artifact, parts, spoil, message):
    spoil(artifact)
    with pytest.raises(InputError, match=message):
        artifact.apply(*(deepcopy(parts[k]) for k in ("unet", "text_encoder", "tokenizer")))


def test_broken_folders_are_refused(artifact, tmp_path):
    with pytest.raises(InputError, match="missing or broken"):
        MifoArtifact.load(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "HieraFPN"}')
    with pytest.raises(InputError, match="not a model of learned instances"):
        MifoArtifact.load(tmp_path)
    artifact.save(tmp_path / "m")
    save_file({"<other>": torch.zeros(32)}, tmp_path / "m" / "tokens" / "asset1.safetensors")
    with pytest.raises(InputError, match="holds <other>, expected the row of <asset1>"):
        MifoArtifact.load(tmp_path / "m")
    (tmp_path / "m" / "tokens" / "asset1.safetensors").unlink()
    with pytest.raises(InputError, match="no such file"):
        MifoArtifact.load(tmp_path / "m")
    same = MifoArtifact("b", {"<a b>": torch.zeros(1), "<a:b>": torch.zeros(1)})
    with pytest.raises(InputError, match="the same file name"):
        same.save(tmp_path / "n")
