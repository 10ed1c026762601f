import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_insert import picture

from lit_insert.cli.infer import main
from lit_insert.images import load_image
from lit_insert.mask_decoder.network import HieraFPN
from lit_insert.mask_decoder.pipeline import MaskPipeline
from lit_insert.rle import decode_rle


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    network = HieraFPN(
        encoder_kwargs={"embed_dim": 8, "stages": [1, 1, 1, 1]}, img_size=64, decoder_channels=16, fine_channels=[8, 4]
    )
    with torch.no_grad():
        network.decoder.head.weight.mul_(20)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    MaskPipeline(network).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """photos/{a,b,c}: of different sizes, one stored lying; the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    picture(1, (37, 45)).save("photos/a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(2, (60, 40)).save("photos/b.jpg", exif=exif)
    picture(3, (64, 64)).save("photos/c.png")
    return tmp_path


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["mask", *map(str, arguments)])
    return end.value.code


def refused(capsys, *arguments):
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def test_a_folder(photos, model, capsys):
    command = ["--image", "photos", "--model", model, "--min_area", "0.001", "--batch-size", 2, "--flip"]
    assert run(*command, "--report", "out/report.html") == 0
    assert "3 masks in out" in capsys.readouterr().out
    names = [f"{p}_{kind}.png" for p in "abc" for kind in ("cutout", "mask", "overlay")]
    assert sorted(p.name for p in Path("out").iterdir()) == sorted([*names, "report.html", "results.json"])
    record = json.loads(Path("out/results.json").read_text())
    assert record["settings"]["flip"] is True
    assert [e["size"] for e in record["results"]] == [[37, 45], [40, 60], [64, 64]]
    pipeline = MaskPipeline.from_pretrained(model)
    for entry in record["results"]:
        output = pipeline(entry["image"], min_area=0.001, flip=True)
        mask = np.asarray(load_image(f"out/{entry['mask']}", mode="L")) > 0
        assert (mask == (np.asarray(output.mask) > 0)).all()
        assert entry["presence"] == pytest.approx(output.presence[0], abs=1e-4)
        assert (decode_rle(entry["rle"]["counts"], entry["rle"]["size"]) == mask).all()
        assert entry["pixels"] == mask.sum()
        assert entry["area"] == pytest.approx(mask.mean(), abs=1e-6)
        if mask.any():
            x, y, width, height = entry["box"]
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert [x, y, x + width, y + height] == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        original = np.asarray(load_image(entry["image"]))
        cut = np.asarray(load_image(f"out/{entry['cutout']}", mode="RGBA"))
        assert (cut[..., :3] == original).all()
        assert ((cut[..., 3] == 255) == mask).all()
        shown = np.asarray(load_image(f"out/{entry['overlay']}"))
        assert (shown[~mask] == original[~mask]).all()
        assert not mask.any() or (shown[mask] != original[mask]).any()
    assert sum(e["pixels"] for e in record["results"]) > 0


def test_one_photo_to_a_file(photos, model):
    assert run("--image", "photos/a.png", "--model", model, "--output", "deep/m.png") == 0
    assert sorted(p.name for p in Path("deep").iterdir()) == ["m.json", "m.png"]
    assert load_image("deep/m.png", mode="L").size == (37, 45)


def test_a_bad_photo_does_not_stop_a_folder(photos, model, capsys):
    Path("photos/bad.png").write_bytes(b"nothing")
    assert run("--image", "photos", "--model", model) == 1
    captured = capsys.readouterr()
    assert "failed: photos/bad.png" in captured.err
    assert "error: 1 of 4 photos failed" in captured.err
    record = json.loads(Path("out/results.json").read_text())
    assert len(record["results"]) == 3
    assert [f["image"] for f in record["failed"]] == ["photos/bad.png"]


def test_a_threshold_is_obeyed(photos, model):
    areas = []
    for threshold in ("0.05", "0.95"):
        assert run("--image", "photos/c.png", "--model", model, "--threshold", threshold) == 0
        areas.append(json.loads(Path("out/results.json").read_text())["results"][0]["pixels"])
    assert areas[0] > areas[1]


def test_mistakes(photos, model, capsys):
    Path("photos/bad.png").write_bytes(b"nothing")
    Path("empty").mkdir()
    for arguments, message in (
        ([], "give --image"),
        (["--image", "absent.png"], "absent.png: no such file or folder"),
        (["--image", "empty"], "no pictures in it"),
        (["--image", "photos/bad.png"], "not a readable picture"),
        (["--image", "photos", "--output", "one.png"], "is one file for 4 photos"),
        (["--image", "photos/a.png", "--output", "one.jpg"], "JPEG blurs masks"),
        (["--image", "photos/a.png", "--output", "photos/a.png"], "would overwrite an input"),
        (["--image", "photos/a.png", "--model", "absent.ckpt"], "no such file here"),
        (["--image", "photos/a.png", "--model", model, "--device", "cuda:99"], "not usable here"),
        (["--image", "photos/a.png", "--model", model, "--threshold", "2"], "threshold is 2"),
        (["--image", "photos/a.png", "--export", "m.pt2"], "leave out --image"),
        (["--export", "m.pth"], r"ends in .onnx or .pt2"),
        (["--image", "photos/a.png", "--treshold", "0.4"], "did you mean --threshold?"),
    ):
        assert message in refused(capsys, *arguments)
    assert not Path("out/results.json").exists()


def test_export_says_how_close_it_is(photos, model, capsys, monkeypatch):
    from lit_insert.mask_decoder import export

    seen = {}
    monkeypatch.setattr(export, "export_network", lambda network, path: seen.update(path=path) or 2e-6)
    assert run("--model", model, "--export", "m.onnx") == 0
    assert seen["path"] == "m.onnx"
    assert "m.onnx: logits differ from the model's by at most 2.0e-06" in capsys.readouterr().out
