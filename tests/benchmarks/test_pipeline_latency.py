import argparse
import json
import sys

import numpy as np
import pytest
from scripts import load


@pytest.fixture(scope="module")
def bench():
    return load("pipeline_latency")


@pytest.mark.parametrize("image_scale", [1.0, 1.5])
def test_both_make_the_same_pictures(bench, image_scale):
    pipeline = bench.random_pipeline("pocket")
    calls = bench.rows(
        pipeline,
        argparse.Namespace(device="cpu", batch=2, steps=2, guidance_scale=7.0, image_guidance_scale=image_scale),
    )
    ours, given, made = (np.stack([np.asarray(p) for p in calls[n]()]) for n in (bench.OURS, bench.GIVEN, bench.MADE))
    assert ours.shape == (2, 32, 32, 3)
    np.testing.assert_allclose(ours.astype(int), made.astype(int), atol=1)
    np.testing.assert_array_equal(given, made)
    assert ours.std() > 1


def test_json_line(bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--size", "pocket", "--steps", "1", "--repeats", "2", "--json"])
    bench.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(result["seconds"]) == 4
    assert result["largest_difference"] <= 1
    for ratios in result["ratios"].values():
        for ratio in ratios.values():
            assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
