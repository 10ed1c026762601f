import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "full_size.py"


def figures(monkeypatch, capsys, *args):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *args, "--json"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_full_size_is_counted_without_memory(monkeypatch, capsys):
    found = figures(monkeypatch, capsys, "--pixels", "256", "--recipe", "legacy")
    blocks = {row["block"]: row for row in found["blocks"]}
    assert blocks["up_blocks.1"]["tensors"] == 15
    assert "no cross-attention" in blocks["up_blocks.0"]["refused"]
    assert "no block" in blocks["down_blocks.4"]["refused"]
    assert found["trains"]["legacy"]["all"] == 5_511_936
    assert found["trains"]["ip"]["adapter"] == 768 * 3072 + 3072 + 2 * 768 + 19_169_280
    assert found["trains"]["all"]["all"] - found["trains"]["all"]["adapter"] == 859_532_484
    assert 0.2e12 < found["flops"]["256"]["training"] < 1e12
    assert "speed" not in found


@pytest.mark.parametrize("recipe", ["lora", "ip"])
def test_a_small_size_is_measured_anywhere(monkeypatch, capsys, recipe):
    args = ("--size", "eighth", "--pixels", "64", "--batch_size", "1", "--steps", "1", "--warmup", "0")
    found = figures(monkeypatch, capsys, *args, "--recipe", recipe)
    assert [row["cache"] for row in found["speed"]] == [False, True]
    assert all(row["samples_per_s"] > 0 and row["tflops"] > 0 for row in found["speed"])
