import json
import sys

import pytest
from scripts import load

PEER = """
from types import SimpleNamespace

import torch


def model_forward_wrapper(model, x, sigma):
    return x + 0 * model(x, sigma)


def pseudo_huber_loss(a, b):
    return (a - b).abs()


class ImprovedConsistencyTraining:
    def __init__(self, final_timesteps):
        self.final_timesteps = final_timesteps

    def __call__(self, model, x, step, total):
        assert 0 <= step < total
        made = model(x, torch.ones(len(x)))
        return SimpleNamespace(predicted=made, target=x, loss_weights=1.0)
"""
SMALL = ["--steps=2", "--warmup=1", "--batch_size=2", "--image_size=8", "--channels=8", "--channel_mult", "1", "2"]


@pytest.mark.parametrize("peer", [True, False])
def test_both_sides_train_and_are_judged_alike(tmp_path, monkeypatch, capsys, peer):
    package = tmp_path / "consistency_models"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "consistency_models.py").write_text(PEER)
    extra = ["--n=8", f"--peer={tmp_path}"] if peer else []
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["", *SMALL, *extra, "--json"])
    load("consistency_throughput").main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["steps_per_second"]) == ({"ours", "peer"} if peer else {"ours"})
    assert result["images"] == 4
    if peer:
        assert result["ratio"] > 0
        assert [look["step"] for look in result["quality"]] == [2]
        assert set(result["quality"][0]["peer"]) == {"fid_1", "fid_2", "swd_1", "swd_2"}
