import json

import lightning.pytorch as pl
import pytest
import torch
from runner import fit, toy

from lit_insert.training.checkpoint import RunCheckpoint
from lit_insert.training.record import JsonLines, RunRecord, git_sha, versions


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_run_and_its_continuation(tmp_path):
    def callbacks():
        return RunRecord(tmp_path, seed=3), RunCheckpoint(every_n_steps=4, monitor=None)

    def logger():
        return JsonLines(tmp_path / "metrics.jsonl")

    fit(tmp_path, *callbacks(), logger=logger(), log_every_n_steps=1, max_steps=9)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["seed"] == 3
    assert record["base_model"] == "toy/base"
    assert record["trainable"] == sum(p.numel() for p in toy().net.parameters())
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    (part,) = record["parts"]
    assert (part["from_step"], part["to_step"], part["status"]) == (0, 9, "finished")
    assert part["start"] < part["end"]
    logged = [r for r in rows(tmp_path) if "train/loss" in r]
    assert [r["step"] for r in logged] == list(range(9))
    assert all(r["train/samples_per_s"] > 0 and r["lr"] == 0.02 for r in logged)

    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "train/loss": 1.0}\n{"step": 10, "tra')  # what a kill leaves
    ckpt = tmp_path / "checkpoints/last.ckpt"
    fit(tmp_path, *callbacks(), logger=logger(), log_every_n_steps=1, max_steps=12, ckpt=ckpt)
    logged = [r for r in rows(tmp_path) if "train/loss" in r]
    assert [r["step"] for r in logged] == list(range(12))
    record = json.loads((tmp_path / "run.json").read_text())
    assert [(p["from_step"], p["to_step"]) for p in record["parts"]] == [(0, 9), (9, 12)]


def test_a_failure_is_recorded(tmp_path):
    with pytest.raises(ValueError, match="loss is nan"):
        fit(tmp_path, RunRecord(tmp_path), model=toy(nan_at="s3"))
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "failed"
    assert "loss is nan" in record["parts"][0]["error"]


def test_values_that_json_lacks_become_null(tmp_path):
    logger = JsonLines(tmp_path / "metrics.jsonl")
    logger.log_metrics({"a": float("nan"), "b": float("inf"), "c": 0.1 + 0.2}, step=1)
    assert rows(tmp_path) == [{"step": 1, "a": None, "b": None, "c": 0.3}]


def test_versions_and_commit():
    assert {"torch", "lightning"} <= versions().keys()
    sha = git_sha()
    assert sha is None or len(sha.removesuffix("+")) == 40


def test_a_full_disk_does_not_hide_the_error(tmp_path, monkeypatch):
    record = RunRecord(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    class Fills(pl.Callback):
        def on_train_batch_end(self, *args):
            monkeypatch.setattr(record, "_write", full)

    with pytest.raises(ValueError, match="loss is nan"):
        fit(tmp_path, Fills(), record, model=toy(nan_at="s3"))
