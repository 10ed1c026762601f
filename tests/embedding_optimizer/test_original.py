import pytest
import torch
from safetensors.torch import load_file
from test_ip_adapter import KINDS, adapter, unet

from lit_insert.embedding_optimizer.network import EmbeddingOptimizer
from lit_insert.embedding_optimizer.original import (
    adapter_from_original,
    load_original,
    read_original,
    save_original,
    to_original,
)
from lit_insert.errors import InputError


class Code:
    def __reduce__(self):
        return print, ("run",)


def legacy(**more):
    torch.manual_seed(0)
    return EmbeddingOptimizer(input_dim=24, output_dim=32, num_tokens=5, mode="legacy", **more).eval()


def test_legacy_is_the_fourteen_tensors():
    with torch.device("meta"):
        tensors = to_original(EmbeddingOptimizer(mode="legacy"))
    assert len(tensors) == 14
    assert sum(t.numel() for t in tensors.values()) == 5_511_936
    layers = [f"mlp_fc{i}.{kind}" for i in range(1, 5) for kind in ("weight", "bias")]
    pooling = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    assert set(tensors) == {
        "projection_layer.weight",
        "projection_layer.bias",
        *(f"attention_pooling.{name}" for name in pooling),
        *layers,
    }


@pytest.mark.parametrize("name", ["emb_opt.pt", "emb_opt.safetensors"])
def test_legacy_round_trip(tmp_path, name):
    net, path = legacy(), tmp_path / name
    save_original(net, path)
    again = adapter_from_original(path, num_tokens=5)
    assert again.config["null_kind"] == "zeros"
    x = torch.randn(2, 9, 24)
    assert torch.equal(again(x), net(x))
    other = legacy(null_kind="learned")
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    load_original(other, path)  # the null embedding is not part of the file, and stays
    assert torch.equal(other(x), net(x))


@pytest.mark.parametrize("mode", KINDS)
@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_ip_adapter_round_trip(tmp_path, mode, suffix):
    net, path = adapter(mode, unet()), tmp_path / f"ip.{suffix}"
    save_original(net, path)
    again = adapter_from_original(path, text_tokens=6, input_tokens=9)
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in net.named_parameters()]
    for a, b in zip(again.parameters(), net.parameters(), strict=True):
        assert torch.equal(a, b)
    layers = len(net.ip.layers)
    names = {f"{2 * i + 1}.to_{kind}_ip.weight" for i in range(layers) for kind in "kv"}
    assert set(read_original(path)["ip_adapter"]) == names
    if suffix == "safetensors":
        assert {n.split(".")[0] for n in load_file(path)} == {"image_proj", "ip_adapter"}


def test_names_of_the_published_projections():
    assert set(to_original(adapter("ip", unet()))["image_proj"]) == {
        "proj.weight",
        "proj.bias",
        "norm.weight",
        "norm.bias",
    }
    plus = set(to_original(adapter("ip_plus", unet()))["image_proj"])
    one = {"0.norm1.weight", "0.norm1.bias", "0.norm2.weight", "0.norm2.bias", "0.to_q.weight", "0.to_kv.weight"}
    one |= {"0.to_out.weight", "1.0.weight", "1.0.bias", "1.1.weight", "1.3.weight"}
    ends = {f"{n}.{kind}" for n in ("proj_in", "proj_out", "norm_out") for kind in ("weight", "bias")}
    assert plus == {"latents", *ends, *(f"layers.{i}.{name}" for i in range(4) for name in one)}


def test_wrong_files_are_refused_with_name_and_reason(tmp_path):
    def refusal(content, net=None):
        path = tmp_path / "emb_opt.pt"
        torch.save(content, path)
        with pytest.raises(InputError) as caught:
            load_original(net or legacy(), path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    good = to_original(legacy())
    assert "holds pickled Python objects" in refusal({"a": Code()})
    assert "neither" in refusal([1, 2])
    assert "lacks 1 weights for mode legacy: mlp_fc4.bias" in refusal(
        {k: v for k, v in good.items() if k != "mlp_fc4.bias"}
    )
    assert "has unknown 1 weights" in refusal({**good, "extra": torch.zeros(1)})
    assert "mlp_fc4.bias has shape (3,)" in refusal({**good, "mlp_fc4.bias": torch.zeros(3)})
    assert "lacks" in refusal(to_original(adapter("ip", unet())))
    assert "needs both image_proj and ip_adapter" in refusal({"image_proj": {"a": torch.zeros(1)}})
    (tmp_path / "cut.bin").write_bytes((tmp_path / "emb_opt.pt").read_bytes()[:50])
    for path in (tmp_path / "cut.bin", tmp_path / "absent.bin", tmp_path / "absent.safetensors"):
        with pytest.raises(InputError, match=path.name):
            adapter_from_original(path)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "odd.pt")
    with pytest.raises(InputError, match="not the weights of a known adapter"):
        adapter_from_original(tmp_path / "odd.pt")


def test_saving_refuses_what_has_no_layout(tmp_path):
    with pytest.raises(ValueError, match="no original layout"):
        save_original(EmbeddingOptimizer(input_dim=8, output_dim=32, heads=4), tmp_path / "x.pt")
    with pytest.raises(InputError, match="unknown suffix"):
        save_original(legacy(), tmp_path / "x.ckpt")
    assert not list(tmp_path.iterdir())
