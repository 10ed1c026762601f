import json
import sys

import numpy as np
import pytest
from PIL import Image
from scripts import load

from lit_insert.replace.pipeline import ReplaceOutput


@pytest.fixture(scope="module")
def bench():
    return load("replace_check")


def test_figures_of_a_few_scenes_and_photos(bench, monkeypatch, capsys, tmp_path):
    for number, case in enumerate(bench.make_cases(2, 48, 0)):
        for folder, picture in (("images", case.photo), ("masks", case.mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            picture.save(tmp_path / folder / f"{number}.png")
    command = ["replace_check.py", "--n", "3", "--versions", "cut_out", "--json"]
    monkeypatch.setattr(sys, "argv", [*command, "--people", str(tmp_path), "--pairs", "1"])
    bench.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    scores = result["scores"]["cut_out"]
    assert scores.keys() == set(bench.COLUMNS)
    assert scores["background"] == result["people"]["background"] == 0
    assert scores["filled"] > 0.8
    assert all(0 <= scores[name] <= 1 for name in bench.COLUMNS if name != "seam")


def test_new_things_differ_in_all_and_scenes_are_the_same_again(bench):
    first, again = bench.make_cases(4, 32, 1), bench.make_cases(4, 32, 1)
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.photo, b.photo)
        assert np.array_equal(a.new, b.new)
        inside = np.asarray(a.mask) > 127
        assert inside.any()


def test_doing_nothing_scores_nothing(bench):
    judge = bench.InsertionJudge.from_pretrained(bench.pocket.path("judge")).eval()
    replacing = bench.ReplacePipeline()
    settings = bench.ReplaceSettings(region_scale=None, min_area=0.0)
    for case in bench.make_cases(3, 64, 2):
        output = replacing(case.photo, mask=case.mask, cut_out=case.new, settings=settings)
        output.report.found_after, output.steps.mask_after = 0.0, np.zeros(output.steps.person.shape, bool)
        idle = ReplaceOutput(Image.fromarray(output.steps.photo), output.steps, output.report)
        scores = bench.score(case, idle, judge)
        assert scores["all"] == scores["shape"] == scores["found"] == scores["iou"] == 0
        assert scores["filled"] in (0.0, 1.0)  # 1 where the new thing covers the old one whole
