"""Training of the pocket segmenter."""

import pytest
import torch

from lit_insert.cli.train import main
from lit_insert.data.phrase_scenes import PhraseSceneDataset
from lit_insert.images import to_pil
from lit_insert.pocket.segment_module import SegmentModule, choice_loss
from lit_insert.segmenters.loading import load_segmenter

SMALL = {"width": 32, "depth": 2, "text_width": 16, "reduce_dim": 16, "extract_layers": [0, 1], "image_size": 32}


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return SegmentModule(**SMALL, naming_steps=0, naming_weight=0.5)


@pytest.fixture(scope="module")
def batch():
    return PhraseSceneDataset("train", 64, size=32, phrases=3, least=1).batch(range(8))


def test_both_towers_and_the_decoder_learn(module, batch):
    loss = module.compute_loss(batch, torch.Generator())["loss"]
    module.zero_grad()
    loss.backward()
    for part in ("clip.vision_model.embeddings", "clip.text_model", "clip.text_projection", "decoder.film_mul"):
        grads = [p.grad for n, p in module.model.named_parameters() if n.startswith(part)]
        assert any(g is not None and g.abs().max() > 0 for g in grads), part


def test_at_first_only_naming_is_learnt(module, batch):
    module.naming_steps = 5
    losses = module.compute_loss(batch, torch.Generator())
    assert "iou" not in losses
    assert torch.equal(losses["loss"].detach(), losses["naming"])
    module.eval()
    assert "iou" in module.compute_loss(batch, torch.Generator())
    module.train()
    module.naming_steps = 0


def test_neighbours_attend_to_each_other_from_the_start(module):
    table = module.model.clip.vision_model.embeddings.position_embedding.weight[1:].detach()
    alike = torch.nn.functional.normalize(table, dim=-1) @ torch.nn.functional.normalize(table, dim=-1).T
    assert alike[0, 1] > 0.5
    assert alike[0, 1] > alike[0, 2] > alike[0, 15]
    assert abs(alike[0, 15]) < 0.2


def test_the_decoder_starts_at_a_size_that_steps_can_move():
    fresh = SegmentModule(**SMALL)
    for layer in (*fresh.model.decoder.reduces, fresh.model.decoder.film_mul):
        assert layer.weight.std() < 0.3


def test_which_things_a_map_chooses(batch):
    truth = torch.where(batch["masks"] > 0.5, 9.0, -9.0)
    assert choice_loss(truth, batch) < 0.01
    everything = torch.where(batch["things"].amax(1, keepdim=True) > 0.5, 9.0, -9.0).expand_as(truth)
    assert choice_loss(everything, batch) > 2
    empty = {**batch, "things": torch.zeros_like(batch["things"]), "labels": torch.full_like(batch["labels"], -1)}
    assert choice_loss(truth, empty) == 0


def test_maps_are_those_of_the_exported_model(module, batch, tmp_path):
    module.eval()
    with torch.no_grad():
        expected = module.decode(module.encode(batch["image"]), module.embed(batch["phrases"]), 3).sigmoid()
    module.train()
    module.export(tmp_path)
    segmenter = load_segmenter("pocket", tmp_path)
    for i in range(4):
        maps = segmenter.heatmaps(to_pil(batch["image"][i]), batch["phrases"][i].split(";"))
        torch.testing.assert_close(maps, expected[i], atol=2e-5, rtol=1e-3)


def test_it_learns_to_name_colours(batch):
    torch.manual_seed(0)
    module = SegmentModule(**SMALL, naming_steps=100)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    data = PhraseSceneDataset("train", 4096, size=32, phrases=1, least=2)
    values = []
    for step in range(30):
        losses = module.compute_loss(data.batch(range(16 * step, 16 * step + 16)), torch.Generator())
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        values.append((float(losses["loss"].detach()), float(losses["color"])))
    assert sum(v[0] for v in values[-5:]) < 0.75 * sum(v[0] for v in values[:5])
    assert sum(v[1] for v in values[-5:]) / 5 > 0.6  # one in eight by chance


def test_a_run_from_its_configuration(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    model = [f"--model.{k}={v}" for k, v in SMALL.items()]
    main(
        [
            *("fit", f"--config={root / 'configs/pocket/segment.yaml'}", "--out=run", *model, "--data.size=32"),
            *("--model.naming_steps=1", "--data.batch_size=2", "--data.val_length=2", "--trainer.max_steps=2"),
            *("--trainer.val_check_interval=2", "--trainer.accelerator=cpu", "--trainer.enable_model_summary=false"),
        ]
    )
    segmenter = load_segmenter("pocket", tmp_path / "run")
    assert segmenter.heatmaps(torch.zeros(3, 32, 32), ["red circle"]).shape == (1, 32, 32)
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
