import argparse

import pytest
import torch
from scripts import load, run
from tiny_insert import components

from lit_insert import InsertPipeline
from lit_insert.embedding_optimizer.parts import UnetTuning


@pytest.fixture(scope="module")
def bench():
    return load("finetune_table")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    InsertPipeline(**components()).save_pretrained(folder)
    return str(folder)


def arguments(base, **more):
    return argparse.Namespace(
        **{"base": base, "seed": 0, "lr": 1e-2, "batch_size": 2, "steps": 3, "minutes": 1.0, **more}
    )


def test_recovered_share(bench):
    assert bench.recovered(0.125, 0.125, 0.925) == 0
    assert bench.recovered(0.925, 0.125, 0.925) == pytest.approx(1)
    assert bench.recovered(0.525, 0.125, 0.925) == pytest.approx(0.5)
    assert bench.recovered(0.5, 0.125, 0.125) is None


def test_only_the_adapter_is_new_and_it_is_the_same_in_every_arm(bench, base):
    old = InsertPipeline.from_pretrained(base)
    arms = [bench.new_module(base, tuning, arguments(base)) for _, tuning in bench.ARMS.values()]
    first = arms[0].embedding_optimizer.state_dict()
    assert first.keys() == old.embedding_optimizer.state_dict().keys()
    assert not torch.equal(first["queries"], old.embedding_optimizer.queries)
    for module in arms[1:]:
        for name, value in module.embedding_optimizer.state_dict().items():
            assert torch.equal(value, first[name]), name
    for name, value in old.unet.state_dict().items():
        assert torch.equal(value, arms[0].unet.state_dict()[name]), name


def test_adapter_only_leaves_the_unet_alone(bench, base):
    module = bench.new_module(base, UnetTuning(target="none"), arguments(base))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    ticks = []
    trainer = bench.fit(module, 3, bench.Ticker(ticks.append), arguments(base))
    assert trainer.global_step == 3
    assert ticks == [1, 2, 3]
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("embedding_optimizer.") for name in changed)


@pytest.mark.slow
def test_json_line(base):
    small = ["--steps", 2, "--n", 4, "--batch_size", 2, "--num_inference_steps", 1, "--json"]
    result = run("finetune_table", "--base", base, *small)
    rows = result["rows"]
    assert len(rows) == 6
    assert [row.get("steps") for row in rows.values()] == [None, None, 2, 2, 2, 2]
    trainable = [row["trainable"] for row in rows.values() if "trainable" in row]
    assert min(trainable) == trainable[0]
    assert all(0 <= row[key] <= 1 for row in rows.values() for key in ("color", "shape"))
