import builtins
import json
import sys

import pytest
from scripts import load

TINY = ["--size", "64", "--batch_size", "1", "--steps", "1", "--repeats", "2", "--decoder_channels", "16", "--json"]
KWARGS = ["--encoder_kwargs", '{"embed_dim": 8, "stages": [1, 1, 1, 1]}']


def test_says_so_where_the_peer_is_missing(monkeypatch, capsys):
    real = builtins.__import__

    def no_peer(name, *args, **options):
        if name.startswith("segmentation_models_pytorch"):
            raise ImportError(name)
        return real(name, *args, **options)

    bench = load("mask_throughput")
    monkeypatch.setattr(builtins, "__import__", no_peer)
    monkeypatch.setattr(sys, "argv", ["x", *TINY, *KWARGS])
    bench.main()
    captured = capsys.readouterr()
    assert captured.err.strip() == "skipped: the peer is not installed; pip install segmentation-models-pytorch"
    assert "skipped" in json.loads(captured.out)


def test_ratios(monkeypatch, capsys):
    pytest.importorskip("segmentation_models_pytorch")
    monkeypatch.setattr(sys, "argv", ["x", *TINY, *KWARGS])
    load("mask_throughput").main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for what in ("training", "inference"):
        rounds, ratio = result[what]["seconds_of_rounds"], result[what]["ratio"]
        assert len(rounds["ours"]) == len(rounds["peer"]) == 2
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]


def test_rounds_take_turns(monkeypatch):
    calls = []
    steps = {"ours": lambda: calls.append("o"), "peer": lambda: calls.append("p")}
    load("mask_throughput").measure(steps, 1, 3, False, lambda: 0.0)
    assert "".join(calls) == "oopp" + "op" + "po" + "op"
