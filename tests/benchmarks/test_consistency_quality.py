import json
import sys

import pytest
from scripts import load
from tiny_generator import tiny_pipeline

from lit_insert.consistency.sources import ModelFacts


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generators")
    tiny_pipeline().save_pretrained(folder / "cd")
    tiny_pipeline(facts=ModelFacts(kind="edm")).save_pretrained(folder / "edm")
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the benchmark in this process; its last line as JSON."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["consistency_quality.py", *map(str, arguments), "--json"])
        load("consistency_quality").main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def test_models_stand_between_floor_and_ceiling(run, models, tmp_path):
    given = ("--model", f"teacher={models / 'edm'}", f"cd={models / 'cd'}", "--teacher_steps", 3, "--steps", 1, 2)
    found = run(*given, "--n", 40, "--grid", tmp_path / "g.png", "--report", tmp_path / "r.html")
    rows = found["scores"]
    names = ["real pictures (floor)", "noise (ceiling)", "teacher, Heun 3", "cd, 1 step", "cd, 2 steps"]
    assert list(rows) == names
    assert all(rows[names[0]][k] < rows[name][k] for name in names[1:] for k in ("fid", "kid", "swd"))
    assert set(found["over_teacher"]) == set(names[3:])
    assert found["passes"]["cd, 1 step: FID <= 3 floors"] is False
    assert (tmp_path / "g.png").exists()
    assert (tmp_path / "r.html").read_text().count("<img") == 40


def test_middle_levels_are_chosen_on_val(run, models):
    found = run("--model", models / "cd", "--tune", 0.5, 2, "--n", 20)
    assert found["settings"]["split"] == "val"
    assert [name for name in found["scores"] if "middle" in name] == [
        f"{models / 'cd'}, middle {s}" for s in ("0.5", "2")
    ]


def test_levels_are_compared_on_val(run, models):
    found = run("--model", f"cd={models / 'cd'}", "--levels", "70", "80,0.75", "--n", 20)
    assert found["settings"]["split"] == "val"
    assert list(found["scores"])[2:] == ["cd, 70", "cd, 80, 0.75"]
    assert found["scores"]["cd, 70"]["fid"] != found["scores"]["cd, 80, 0.75"]["fid"]


def test_too_few_pictures_is_one_line(run, models, tmp_path):
    with pytest.raises(SystemExit) as end:
        run("--model", models / "cd", "--data", tmp_path)
    assert str(end.value).startswith(f"error: {tmp_path}")
