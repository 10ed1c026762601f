import json
import sys

import pytest
import tiny_text
import torch
from scripts import load

from lit_insert import pocket
from lit_insert.data.caption_scenes import CaptionSceneDataset
from lit_insert.metrics.insertion import InsertionJudge

SMALL = ["--n=2", "--per_prompt=2", "--num_inference_steps=2", "--split=val"]


@pytest.fixture(scope="module")
def benchmark():
    return load("mifo_quality")


def test_layouts_are_two_different_things_in_their_boxes(benchmark):
    found = benchmark.layouts("val", 5)
    assert len(found) == 5
    for layout in found:
        first, second = layout.labels.tolist()
        assert first[0] != second[0]
        assert first[1] != second[1]
        assert all(box.subject in layout.prompt for box in layout.boxes)
        assert layout.places[0] < layout.places[1]


def test_the_judge_sees_real_scenes_in_their_boxes_and_not_in_the_exchanged_ones(benchmark):
    data = CaptionSceneDataset("val", 64, chances=(0.0, 1.0, 0.0))
    batch = data.batch(range(24))
    judge = InsertionJudge.from_pretrained(pocket.path("judge")).eval()
    right, exchanged = [], []
    for picture, labels in zip(batch["image"], batch["labels"], strict=True):
        places = [p for p in range(4) if labels[p, 0] >= 0]
        own = labels[places]
        if (own[0, :2] == own[1, :2]).any():
            continue
        for order, into in ((places, right), (places[::-1], exchanged)):
            seen = benchmark.judge_boxes(judge, picture[None], benchmark.Layout("", own, order))
            into.append((seen == own)[..., :2].all(-1).float().mean())
    assert torch.stack(right).mean() > 0.9
    assert torch.stack(exchanged).mean() == 0


def test_the_table_has_a_row_for_each_control(benchmark, tmp_path, monkeypatch, capsys):
    model = tiny_text.write_model(tmp_path / "m", length=64)
    rows = ["--rows", "no control", "both, refined", "--grid", str(tmp_path / "g.png"), "--json"]
    monkeypatch.setattr(sys, "argv", ["", "--model", str(model), *SMALL, *rows, "--step_size", "30", "10"])
    benchmark.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["model"]["guidance"]["step_size"] == [30.0, 10.0]
    assert set(found["scores"]) == {"as drawn", "exchanged"}
    for scores in found["scores"].values():
        assert list(scores) == ["no control", "both, refined"]
        assert all(0 <= value <= 1 for row in scores.values() for value in row.values())
    assert (tmp_path / "g.png").is_file()
    monkeypatch.setattr(sys, "argv", ["", "--n=5", "--per_prompt=2"])
    with pytest.raises(SystemExit, match="no multiple of --per_prompt 2"):
        benchmark.main()
