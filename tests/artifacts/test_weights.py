import json
import pickle

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from lit_insert.artifacts.weights import (
    check_safetensors,
    load_component,
    load_onto,
    read_torch,
    read_weights,
    trained_weights,
)
from lit_insert.errors import InputError


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('the trap ran')",))


@pytest.fixture
def vae(tmp_path):
    torch.manual_seed(0)
    model = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)
    model.save_pretrained(tmp_path / "model" / "vae")
    return model


def refusal(function, *arguments, **options):
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_pickled_code_is_refused_not_run(tmp_path):
    for name in ("a.pt", "b.bin", "c.ckpt"):
        torch.save({"state_dict": {"w": torch.zeros(2)}, "x": Trap()}, tmp_path / name)
        assert name in refusal(read_torch, tmp_path / name)
        assert "runs code" in refusal(read_torch, tmp_path / name)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    assert "plain.pt" in refusal(read_torch, tmp_path / "plain.pt")


def test_truncated_files_are_named(tmp_path, vae):
    torch.save({"w": torch.randn(1000)}, tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[:1000])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("hello world")
    for name in ("cut.pt", "empty.pt", "text.pt"):
        assert name in refusal(read_weights, tmp_path / name)
    assert read_weights(tmp_path / "whole.pt")["w"].shape == (1000,)
    file = tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    for size in (0, 4, 100, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert "diffusion_pytorch_model.safetensors" in refusal(check_safetensors, file)
        assert "truncated" in refusal(load_component, AutoencoderKL, tmp_path / "model", "vae")


def test_component_round_trip_and_dtype(tmp_path, vae):
    loaded = load_component(AutoencoderKL, tmp_path / "model", "vae", dtype=torch.float16)
    assert not loaded.training
    for name, value in vae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half())


def test_half_precision_files_load_in_float32(tmp_path, vae):
    vae.half().save_pretrained(tmp_path / "model" / "vae")
    loaded = load_component(AutoencoderKL, tmp_path / "model", "vae")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_missing_pieces_are_told_apart(tmp_path, vae):
    folder, part = tmp_path / "model", tmp_path / "model" / "vae"
    assert "no unet/ folder" in refusal(load_component, AutoencoderKL, folder, "unet")
    file = part / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    removed = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != removed}, file)
    text = refusal(load_component, AutoencoderKL, folder, "vae")
    assert "lack 1 tensors" in text
    assert removed in text
    weights["conv"] = weights.pop(removed)
    file.unlink()
    assert "looked for diffusion_pytorch_model.safetensors" in refusal(load_component, AutoencoderKL, folder, "vae")
    (part / "config.json").unlink()
    assert "no config.json" in refusal(load_component, AutoencoderKL, folder, "vae")


def test_weights_of_another_size_are_refused(tmp_path, vae):
    config = tmp_path / "model" / "vae" / "config.json"
    values = json.loads(config.read_text())
    values["latent_channels"] = 8
    config.write_text(json.dumps(values))
    assert str(tmp_path / "model" / "vae") in refusal(load_component, AutoencoderKL, tmp_path / "model", "vae")


def test_variant_is_used_where_there_is_one(tmp_path, vae):
    part = tmp_path / "model" / "vae"
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(3.0)
    vae.half().save_pretrained(part, variant="fp16")
    plain = load_component(AutoencoderKL, tmp_path / "model", "vae")
    half = load_component(AutoencoderKL, tmp_path / "model", "vae", variant="fp16")
    assert plain.decoder.conv_out.bias[0] != 3.0
    assert half.decoder.conv_out.bias[0] == 3.0


def test_load_onto_is_all_or_nothing():
    model = torch.nn.Linear(2, 2)
    before = model.weight.clone()
    good = torch.full((2, 2), 5.0)
    assert "fit nothing" in refusal(load_onto, model, {"weight": good, "other": good}, "x.ckpt")
    assert "x.ckpt: bias has shape (3,)" in refusal(
        load_onto, model, {"weight": good, "bias": torch.zeros(3)}, "x.ckpt"
    )
    assert "1 tensors are missing (first: bias)" in refusal(
        load_onto, model, {"weight": good}, "x.ckpt", need={"weight", "bias"}
    )
    assert torch.equal(model.weight, before)
    load_onto(model, {"weight": good}, "x.ckpt")
    assert torch.equal(model.weight, good)


def test_trained_weights_prefer_the_moving_average():
    raw, average = {"a": torch.zeros(1), "b": torch.zeros(1)}, {"a": torch.ones(1)}
    plain = trained_weights({"state_dict": raw}, "x")
    assert plain["a"] == 0
    kept = {"state_dict": raw, "callbacks": {"EMA": {"updates": 3, "shadow": average}}}
    assert trained_weights(kept, "x")["a"] == 1
    assert trained_weights(kept, "x")["b"] == 0
    kept["callbacks"]["EMA"]["updates"] = 0
    assert trained_weights(kept, "x")["a"] == 0
    assert "no state_dict" in refusal(trained_weights, {"model": raw}, "x.ckpt")
