import json
import sys

import pytest
from scripts import load
from tiny_generator import tiny_pipeline

from lit_insert.consistency.sources import ModelFacts

SMALL = [
    "--steps=2",
    "--batch_size=2",
    "--n=12",
    "--teacher_steps=2",
    "--sample_steps=1",
    "--extra",
    "samples.num_samples=2",
    "trainer.limit_val_batches=0",
    "trainer.enable_model_summary=false",
]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the benchmark in this process; its last line as JSON."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["", f"--work={tmp_path}", "--json", *SMALL, *map(str, arguments)])
        load("consistency_objectives").main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def test_arms_are_made_in_pieces_and_only_once(run, tmp_path):
    teacher = tmp_path / "teacher"
    tiny_pipeline(facts=ModelFacts(kind="edm")).save_pretrained(teacher)
    size = f"data.image_size={tiny_pipeline().size}"
    first = run(size, "--arms", "edm", "--teacher", teacher)
    assert list(first["arms"]) == ["edm"]
    before = (tmp_path / "edm.json").read_bytes()
    both = run(size, "--arms", "edm", "ect", "--teacher", teacher, "--grid", tmp_path / "g.png")
    assert (tmp_path / "edm.json").read_bytes() == before
    assert list(both["arms"]) == ["edm", "ect"]
    assert both["arms"]["ect"]["start"] == "teacher"
    assert set(both["arms"]["ect"]["scores"]) == {"1"}
    assert set(both["arms"]["edm"]["scores"]) == {"2"}
    floor, gaussian, noise = both["controls"].values()
    assert floor["fid"] < gaussian["fid"] < noise["fid"]
    assert (tmp_path / "g.png").is_file()
    with pytest.raises(SystemExit, match=r"^error: .*edm.json: made with --seed 0, not 1"):
        run(size, "--arms", "edm", "--teacher", teacher, "--seed", 1)


def test_what_needs_a_teacher_says_so(run):
    with pytest.raises(SystemExit, match=r"^error: arm cd starts from the diffusion model"):
        run("--arms", "cd")
