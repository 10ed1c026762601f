import json
import sys

import numpy as np
import torch
from scripts import load
from tiny_fusion import space, transformer

from lit_insert.fusion.pipeline import FusionPipeline


def test_cases_say_where_there_is_room():
    benchmark = load("fusion_quality")
    cases = benchmark.draw_cases(12, "val")
    assert len(cases) == 12
    assert {c.anchor is None for c in cases} == {True, False}
    for case in cases:
        y, x = case.step if case.anchor is None else np.array(benchmark.PLACES[case.anchor]) + case.step
        box = (48 * y, 48 * x, 48 * y + 16, 48 * x + 16)
        assert benchmark.in_region(case, box), "the free place itself is right"
        assert not benchmark.in_region(case, (48 * (1 - y), 48 * (1 - x), 48 * (1 - y) + 16, 48 * (1 - x) + 16))
        assert not (case.things.max(0)[24 * y * 2 + 4 : 24 * y * 2 + 8, 24 * x * 2 + 4 : 24 * x * 2 + 8] > 0).any()
    again = benchmark.draw_cases(3, "val")
    assert [c.place for c in again] == [c.place for c in cases[:3]]


def test_the_whole_of_it_on_random_models(monkeypatch, capsys, tmp_path):
    FusionPipeline(space(), transformer(num_classes=6)).save_pretrained(tmp_path / "model")
    arguments = ["--model", tmp_path / "model", "--segmenter", "oracle", "--n", 8, "--steps", 3, "--strengths", 0.3]
    monkeypatch.setattr(sys, "argv", ["x", *map(str, arguments), "--grid", str(tmp_path / "g.png"), "--json"])
    with torch.random.fork_rng():
        load("fusion_quality").main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["missing"] == []
    scores, row = result["scores"], result["strengths"][1]
    assert [r["strength"] for r in result["strengths"]] == [0.0, 0.3]
    assert scores["in_region"] >= 0.75, "placing needs no trained weights"
    assert scores["on_free_space"] >= 0.75
    assert row["background_max_abs_diff"] == 0
    assert scores["psnr"] < 28
    assert result["passes"]["psnr"] is False
    assert {f"{what}_{of}" for what in ("fid", "class_seen") for of in ("samples", "gaussian", "real")} <= scores.keys()
    assert (tmp_path / "g.png").is_file()


def test_what_is_missing_is_said(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--model", "nowhere.at.all", "--segmenter", "oracle", "--n", "2", "--json"])
    load("fusion_quality").main()
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert [line.split(":")[0] for line in result["missing"]] == ["autoencoder", "transformer"]
    assert "not measured: autoencoder" in out
