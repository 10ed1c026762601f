import pytest
import torch
from tiny_fusion import DIT, seeded, transformer

from lit_insert.errors import InputError
from lit_insert.fusion.convert import _BLOCK, _ENDS, _SINGLE, load_published, main
from lit_insert.fusion.network import DiTDH


def published(net: DiTDH) -> dict[str, torch.Tensor]:
    """A network's weights under the published names."""
    single = {v: k for k, v in _SINGLE.items()}
    ends = {v: k for k, v in _ENDS.items()}
    inner = {v: k for k, v in _BLOCK.items()}
    layers, made = net.config.encoder_layers, {"pos_embed": net.position}
    for part in ("encoder", "head"):
        name = {"encoder": "enc", "head": "dec"}[part]
        for table in ("cos", "sin"):
            made[f"{name}_feat_rope.freqs_{table}"] = getattr(net, f"{part}_{table}")
    for key, value in net.state_dict().items():
        words = key.split(".")
        if words[0].endswith("_blocks"):
            index = int(words[1]) + (0 if words[0] == "encoder_blocks" else layers)
            made[f"blocks.{index}.{inner['.'.join(words[2:])]}"] = value
        elif key in single:
            made[single[key]] = value
        else:
            stem, kind = key.rsplit(".", 1)
            made[f"{ends[stem]}.{kind}"] = value
    return made


def test_published_weights_are_read_to_the_last(tmp_path):
    net = transformer()
    state = published(net)
    assert "blocks.2.attn.qkv.weight" in state
    assert "final_layer.adaLN_modulation.1.bias" in state
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"ema": {f"module.{k}": v for k, v in state.items()}, "model": {}}, tmp_path / "wrapped.pt")
    x, t, label = torch.randn(2, 64, 8, 8, generator=seeded()), torch.tensor([0.3, 0.8]), torch.tensor([1, 3])
    for name in ("plain", "wrapped"):
        again = load_published(tmp_path / f"{name}.pt")
        assert {k: again.config[k] for k in DIT} == DIT
        assert torch.allclose(again(x, t, label).sample, net(x, t, label).sample, atol=1e-5)


def test_the_command_writes_a_folder(tmp_path, capsys):
    torch.save(published(transformer()), tmp_path / "x.pt")
    main([str(tmp_path / "x.pt"), "--out", str(tmp_path / "out")])
    assert DiTDH.from_pretrained(tmp_path / "out").config.head_width == 64
    with pytest.raises(SystemExit):
        main([str(tmp_path / "y.pt"), "--out", str(tmp_path / "out")])
    assert "error: " in capsys.readouterr().err


def test_what_does_not_fit_is_refused(tmp_path):
    state = published(transformer())

    def loaded(changed):
        torch.save(changed, tmp_path / "x.pt")
        return load_published(tmp_path / "x.pt")

    with pytest.raises(InputError, match=r"have no place in the network \(first: blocks.1.attn.q_norm.weight"):
        loaded({**state, "blocks.1.attn.q_norm.weight": torch.ones(4)})
    with pytest.raises(InputError, match="1 tensors are missing"):
        loaded({k: v for k, v in state.items() if k != "blocks.0.mlp.w12.bias"})
    with pytest.raises(InputError, match=r"no tensor x_embedder\.proj"):
        loaded({"a": torch.ones(2)})
    with pytest.raises(InputError, match="shape"):
        loaded({**state, "s_projector.bias": torch.ones(5)})
    with pytest.raises(InputError, match="pickled Python objects"):
        loaded({"a": main})
