import pytest
import torch
from tiny_base import scenes, write_base
from tiny_insert import seeded

from lit_insert.embedding_optimizer.convert import main
from lit_insert.embedding_optimizer.original import save_original
from lit_insert.embedding_optimizer.parts import load_parts
from lit_insert.embedding_optimizer.pipeline import InsertPipeline


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(write_base(tmp_path_factory.mktemp("base")))


@pytest.mark.parametrize(("mode", "name"), [("legacy", "emb_opt.pt"), ("ip", "ip.bin"), ("ip_plus", "ip.safetensors")])
def test_a_file_from_elsewhere_becomes_a_model(base, tmp_path, capsys, mode, name):
    parts = load_parts(base, adapter={"mode": mode, **({"heads": 1} if mode == "ip_plus" else {})})
    with torch.no_grad():
        for p in parts.embedding_optimizer.parameters():
            p.add_(0.05 * torch.randn_like(p))
    save_original(parts.embedding_optimizer, tmp_path / name)
    main([str(tmp_path / name), f"--base={base}", f"--out={tmp_path / 'model'}"])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "model")
    batch, images = scenes(1), []
    for pipe in (InsertPipeline.from_pretrained(tmp_path / "model"), InsertPipeline.from_parts(parts)):
        pipe.set_progress_bar_config(disable=True)
        pipe.set_scheduler("ddim")
        images += pipe(
            image=batch["source"],
            object_pixel_values=batch["object"],
            num_inference_steps=2,
            generator=seeded(0),
            output_type="pt",
        ).images
    assert torch.allclose(images[0], images[1], atol=1e-5)


def test_a_file_that_does_not_fit_is_one_line(base, tmp_path, capsys):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "odd.pt")
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "odd.pt"), f"--base={base}", f"--out={tmp_path / 'model'}"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'odd.pt'}: not the weights of a known adapter")
    assert not (tmp_path / "model").exists()
