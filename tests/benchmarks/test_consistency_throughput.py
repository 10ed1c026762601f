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
NETWORKS = """
import torch


class ECMPrecond(torch.nn.Module):
    def __init__(self, img_resolution, img_channels, model_type):
        super().__init__()
        self.model = globals()[model_type](img_resolution=img_resolution, in_channels=img_channels)

    def forward(self, x, sigma, class_labels=None, augment_labels=None):
        made = self.model(x, sigma.log().flatten() / 4, class_labels=class_labels, augment_labels=augment_labels)
        assert made.dtype == x.dtype
        return x + 0 * made
"""
LOSS = """
import torch


class ECMLoss:
    stages = []

    def update_schedule(self, stage):
        self.stages.append(stage)

    def __call__(self, net, images):
        torch.cuda.set_rng_state(torch.cuda.get_rng_state())
        sigma = torch.ones(len(images), 1, 1, 1)
        return (net(images, sigma, None, augment_labels=None) - images + sigma).square().flatten(1).sum(1)
"""
SMALL = ["--steps=2", "--warmup=1", "--batch_size=2", "--image_size=8", "--channels=8", "--channel_mult", "1", "2"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the benchmark in this process; its last line as JSON."""

    def call(*arguments):
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "argv", ["", *SMALL, *map(str, arguments), "--json"])
        load("consistency_throughput").main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def checkout(folder, **files):
    """A package of a peer."""
    folder.mkdir()
    for name, text in {"__init__": "", **files}.items():
        (folder / f"{name}.py").write_text(text)


def test_improved_training_beside_its_peer(run, tmp_path):
    checkout(tmp_path / "consistency_models", consistency_models=PEER)
    result = run("--n=8", f"--peer={tmp_path}", "--every=1", f"--save={tmp_path / 'curve.json'}")
    assert result["settings"]["objective"] == "ict"
    assert set(result["steps_per_second"]) == {"ours", "peer"}
    assert result["images"] == 4
    assert result["ratio"] > 0
    assert [look["step"] for look in result["quality"]] == [1, 2]
    assert set(result["quality"][0]["peer"]) == {"fid_1", "fid_2", "swd_1", "swd_2"}
    assert result["controls"]["floor"]["fid"] < result["controls"]["noise"]["fid"]
    assert json.loads((tmp_path / "curve.json").read_text()) == result


def test_easy_tuning_beside_its_peer(run, tmp_path, monkeypatch):
    checkout(tmp_path / "training", networks=NETWORKS, loss=LOSS)
    for name in ("training", "training.networks", "training.loss"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    result = run(f"--peer={tmp_path}", "--stages=2", "--bf16=ours")
    assert result["settings"]["objective"] == "ect"
    assert set(result["steps_per_second"]) == {"ours", "peer"}
    assert sys.modules["training.loss"].ECMLoss.stages == [0, 1]


def test_alone_and_for_a_time(run):
    result = run("--objective=ect", "--minutes=0.0001", "--clock=cpu")
    assert set(result["steps_per_second"]) == {"ours"}
    assert result["steps"] == 1
    assert "ratio" not in result


def test_a_folder_that_is_no_peer_is_one_line(run, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: --peer .*no checkout of Kinyugo"):
        run(f"--peer={tmp_path}")
