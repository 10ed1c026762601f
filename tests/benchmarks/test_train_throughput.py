import argparse
import json
import sys

import pytest
import yaml
from PIL import Image
from scripts import load, run
from torch.utils.tensorboard import SummaryWriter

PEER = """
import argparse, time
from pathlib import Path
from datasets import load_dataset
from diffusers import StableDiffusionInstructPix2PixPipeline
from torch.utils.tensorboard import SummaryWriter

parser = argparse.ArgumentParser()
for name in ("pretrained_model_name_or_path", "train_data_dir", "output_dir", "original_image_column",
             "edited_image_column", "edit_prompt_column", "cache_dir"):
    parser.add_argument("--" + name)
parser.add_argument("--max_train_steps", type=int)
args, _ = parser.parse_known_args()
StableDiffusionInstructPix2PixPipeline.from_pretrained(args.pretrained_model_name_or_path)
data = load_dataset("imagefolder", data_files={"train": args.train_data_dir + "/**"}, cache_dir=args.cache_dir)
row = data["train"][0]
assert row[args.original_image_column].size == row[args.edited_image_column].size == (32, 32)
assert row[args.edit_prompt_column].startswith("add a")
with SummaryWriter(args.output_dir + "/logs/instruct-pix2pix") as writer:
    for step in range(args.max_train_steps):
        time.sleep(0.01)
        writer.add_scalar("train_loss", 0.5, step + 1)
"""


@pytest.fixture(scope="module")
def bench():
    return load("train_throughput")


def test_steps_are_timed_between_events(bench, tmp_path):
    with SummaryWriter(tmp_path / "logs" / "x") as writer:
        for step, wall in ((1, 100.0), (2, 100.5), (3, 100.75), (4, 102.0)):
            writer.add_scalar("train_loss", 1.0, step, walltime=wall)
            writer.add_scalar("other", 1.0, step, walltime=7.0)
    assert bench.step_seconds(tmp_path, "train_loss") == [0.5, 0.25, 1.25]
    assert bench.step_seconds(tmp_path, "absent") == []


def test_both_get_the_same_pictures(bench, tmp_path):
    bench.write_triplets(tmp_path, bench.SIZES["pocket"], 5)
    ours = [json.loads(line) for line in (tmp_path / "ours/train/metadata.jsonl").read_text().splitlines()]
    peer = [json.loads(line) for line in (tmp_path / "peer/metadata.jsonl").read_text().splitlines()]
    assert len(ours) == len(peer) == 5
    for mine, theirs in zip(ours, peer, strict=True):
        assert theirs.keys() == {"original_image_file_name", "target_image_file_name", "instruction"}
        assert theirs.items() <= mine.items()
        for key in ("original_image_file_name", "target_image_file_name"):
            name = theirs[key]
            assert (tmp_path / "peer" / name).read_bytes() == (tmp_path / "ours/train" / name).read_bytes()
        assert Image.open(tmp_path / "ours/train" / mine["mask_file_name"]).getextrema() == (0, 255)


def test_arms_differ_in_what_they_are_about_alone(bench, tmp_path):
    args = argparse.Namespace(batch_size=None, device="cpu", steps=3, precision="bf16", ema=True, fused=False)
    plain, cached, attn2 = (
        bench.our_config(arm, tmp_path, bench.SIZES["pocket"], args) for arm in ("ours", "cached", "attn2_cached")
    )
    assert plain["model"]["init_args"]["unet"] == {"target": "all"}
    assert plain["trainer"]["precision"] == "bf16-mixed"
    plain["model"]["init_args"]["feature_cache"] = str(tmp_path / "cache")
    assert plain == cached
    attn2["model"]["init_args"]["unet"] = {"target": "all"}
    assert attn2 == cached
    assert yaml.safe_load(yaml.safe_dump(cached)) == cached


@pytest.mark.parametrize("size", ["eighth", "quarter"])
def test_scaled_sizes_keep_the_proportions(bench, size):
    full, scaled = bench.SIZES["full"], bench.SIZES[size]
    k = full.pixels // scaled.pixels
    assert scaled.unet["block_out_channels"] == tuple(w // k for w in full.unet["block_out_channels"])
    assert scaled.vae["block_out_channels"] == tuple(w // k for w in full.vae["block_out_channels"])
    assert scaled.vision["hidden_size"] * k == full.vision["hidden_size"]
    assert scaled.object_pixels % scaled.vision["patch_size"] == 0
    assert full.unet["block_out_channels"] == (320, 640, 1280, 1280)


@pytest.mark.parametrize(("arguments", "culprit"), [(["--peer", "/nowhere"], "/nowhere"), (["--warmup", "29"], "29")])
def test_bad_arguments_are_named(bench, monkeypatch, capsys, arguments, culprit):
    monkeypatch.setattr(sys, "argv", ["train_throughput.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        bench.main()
    assert culprit in capsys.readouterr().err


@pytest.mark.slow
def test_json_line(tmp_path):
    script = tmp_path / "peer.py"
    script.write_text(PEER)
    small = ["--sizes", "pocket", "--batch_size", 2, "--steps", 4, "--warmup", 1, "--repeats", 1, "--json"]
    result = run("train_throughput", "--peer", script, *small)["sizes"]["pocket"]
    assert result["arms"].keys() == {"peer", "ours", "cached"}
    assert result["ratios"].keys() == {"ours/peer", "cached/peer", "cached/ours"}
    times = {arm: row["step_seconds"] for arm, row in result["arms"].items()}
    assert times["peer"] >= 0.01
    assert result["ratios"]["ours/peer"]["median"] == pytest.approx(times["peer"] / times["ours"], abs=1e-3)
