import json
import sys

from scripts import load


def test_scores_controls_and_report(monkeypatch, capsys, tmp_path):
    page = tmp_path / "page.html"
    monkeypatch.setattr(sys, "argv", ["x", "--n", "48", "--report", str(page), "--json"])
    load("mask_quality").main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["pictures"] == 48
    assert result["settings"]["size"] == 64
    scores = result["scores"]
    assert scores["model"]["iou"] > 0.95
    assert scores["model"]["boundary_f"] > 0.95
    assert scores["model"]["presence_accuracy"] > 0.95
    assert scores["control: empty"]["iou"] == 0
    assert scores["control: unlike the border"]["iou"] < 0.8
    assert result["weight_bytes"] <= 8e6
    assert result["seconds"]["later_call"] > 0
    text = page.read_text()
    assert text.count("<img") == 16 * 4
    assert "The 8 worst" in text
