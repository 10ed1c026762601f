import numpy as np
import pytest
import torch
from tiny_mask import FAMILIES, PLAIN

from lit_insert.errors import InputError
from lit_insert.mask_decoder import export
from lit_insert.mask_decoder.export import export_network
from lit_insert.mask_decoder.network import HieraFPN


def network(config=PLAIN):
    torch.manual_seed(0)
    return HieraFPN(**config).eval()


@pytest.mark.parametrize("family", ["plain", "sam2"])
def test_program_takes_any_batch(tmp_path, family):
    model = network(FAMILIES[family])
    assert export_network(model, tmp_path / "m.pt2") <= 1e-4
    loaded = torch.export.load(tmp_path / "m.pt2").module()
    image = torch.rand(2, 3, 64, 64)
    logits, presence = loaded(image)
    with torch.no_grad():
        expected = model(model.normalize(image * 2 - 1))
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(presence, expected.presence_logits, atol=1e-4, rtol=0)


def test_onnx(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = network()
    assert export_network(model, tmp_path / "m.onnx") <= 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]  # weights inside
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    logits, presence = session.run(["logits", "presence_logits"], {"image": image})
    assert (logits.shape, presence.shape) == ((2, 1, 64, 64), (2,))
    assert all(module.fused_attn for module in model.modules() if hasattr(module, "fused_attn"))


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    def wrong(program, path, pictures):
        path.write_bytes(b"after")
        return [(torch.zeros(len(p), 1, 64, 64), torch.zeros(len(p))) for p in pictures]

    monkeypatch.setattr(torch.export, "export", lambda *args, **options: None)
    monkeypatch.setattr(export, "_program", wrong)
    (tmp_path / "m.pt2").write_bytes(b"before")
    with pytest.raises(InputError, match="differs from the network"):
        export_network(network(), tmp_path / "m.pt2")
    assert (tmp_path / "m.pt2").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"ends in \.onnx or \.pt2"):
        export_network(network(), tmp_path / "m.pth")
    with pytest.raises(InputError, match="float32"):
        export_network(network().bfloat16(), tmp_path / "m.pt2")
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs onnx, onnxruntime, onnxscript: pip install 'lit-insert\[onnx\]'"):
        export_network(network(), tmp_path / "m.onnx")
