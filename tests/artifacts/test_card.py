import json

import pytest
import yaml

from lit_insert.artifacts.card import write_card
from lit_insert.errors import InputError


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(
        json.dumps(
            {
                "parts": [{"argv": ["train.py", "fit"]}, {"argv": ["train.py", "fit", "--resume"]}],
                "git": "abc",
                "versions": {"torch": "2.15"},
                "device": "cpu",
                "seed": 0,
                "base_model": "owner/of-the-run",
            }
        )
    )
    rows = [{"step": 1, "val/loss": 0.5, "train/loss": 1.0}, {"step": 2, "val/loss": 0.25}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "model").mkdir()
    return folder


def front(text):
    return yaml.safe_load(text.split("---")[1])


def test_card_says_what_it_is_and_how_well_it_does(run, tmp_path):
    path = write_card(
        tmp_path / "model",
        name="Pocket insert",
        summary="Puts shapes into scenes.",
        run=run,
        base="owner/base",
        datasets=["owner/data", "procedural scenes"],
        metrics={"colour right": 0.9765},
        licence="apache-2.0",
        limits="Knows shapes only.",
    )
    text = path.read_text()
    assert path.name == "README.md"
    assert front(text)["base_model"] == "owner/base"
    assert front(text)["datasets"] == ["owner/data"]
    assert front(text)["license"] == "apache-2.0"
    for line in (
        "# Pocket insert",
        "- Command: `train.py fit`",
        "- Command: `train.py fit --resume`",
        "- Base: owner/base",
        "- Seed: 0",
        "- Commit: abc",
        "- Versions: torch 2.15",
        "- Data: owner/data, procedural scenes",
        "| colour right | 0.9765 |",
        "| val/loss | 0.25 |",
        "Knows shapes only.",
    ):
        assert line in text
    assert "train/loss" not in text
    assert front(write_card(tmp_path / "model", name="M", summary="s", run=run).read_text())["base_model"] == (
        "owner/of-the-run"
    )


def test_card_without_a_run_claims_nothing(tmp_path):
    text = write_card(tmp_path, name="M", summary="s").read_text()
    assert front(text)["license"] == "other"
    assert "base_model" not in front(text)
    assert "## Measured" not in text
    assert "## How it was made" not in text


def test_broken_records_are_named(run, tmp_path):
    def refuse(message, folder=None):
        with pytest.raises(InputError, match=message):
            write_card(folder or tmp_path / "model", name="M", summary="s", run=run)

    refuse("no such folder", tmp_path / "absent")
    (run / "metrics.jsonl").write_text('{"val/loss": 1}\n{"val/lo')
    refuse(r"metrics\.jsonl: line 2")
    (run / "run.json").write_text("{")
    refuse(r"run\.json: broken JSON")
    (run / "run.json").unlink()
    refuse("is it a run folder")
