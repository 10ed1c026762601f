import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from replace_samples import backdrop, figure, sticker
from tiny_inpaint import tiny_pipeline

from lit_insert.cli.infer import main
from lit_insert.images import load_image
from lit_insert.mask_decoder.network import HieraFPN
from lit_insert.mask_decoder.pipeline import MaskPipeline


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """photos/{a,b}.png, masks of the same names (b's is empty), stickers/{a,s}.png; the working folder."""
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "masks", "stickers"):
        Path(folder).mkdir()
    photo, mask = figure()
    photo.save("photos/a.png")
    mask.save("masks/a.png")
    backdrop((60, 70)).save("photos/b.png")
    Image.new("L", (60, 70)).save("masks/b.png")
    sticker().save("stickers/a.png")
    sticker(colour=(240, 240, 20)).save("stickers/s.png")
    return tmp_path


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["replace", *map(str, arguments)])
    return end.value.code


def refused(capsys, *arguments):
    """Run, check that it fails as a mistake in the input in one line; returns the line."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if "error" in line]
    return line


def record(path="out/results.json"):
    return json.loads(Path(path).read_text())


ONE = ("--image", "photos/a.png", "--mask", "masks/a.png", "--with", "stickers/s.png")


def test_one_photo(photos, capsys):
    assert run(*ONE) == 0
    (entry,) = record()["results"]
    assert entry["output"] == "a__s.png"
    assert entry["replaced"]
    assert entry["background_max_abs_diff"] == 0
    assert entry["presence_before"] is None  # no mask model was needed
    assert record()["settings"]["fill"] == "opencv"
    before, after = load_image("photos/a.png"), load_image("out/a__s.png")
    assert before.size == after.size
    changed = (np.asarray(before) != np.asarray(after)).any(-1)
    assert 0.05 < changed.mean() < 0.6
    assert "1 of 1 photos replaced" in capsys.readouterr().out


def test_to_a_file_with_steps_and_report(photos):
    assert run(*ONE, "--output", "deep/r.png", "--save_steps", "--report", "page.html") == 0
    assert sorted(p.name for p in Path("deep").iterdir()) == ["r.json", "r.png", "steps"]
    assert Path("deep/steps/r/11_result.png").read_bytes() == Path("deep/r.png").read_bytes()
    page = Path("page.html").read_text()
    assert page.count("<img") == 10
    assert "background max. difference" in page


def test_a_folder_and_one_without_a_person(photos, capsys):
    status = run("--image", "photos", "--mask", "masks", "--with", "stickers/s.png", "--report", "page.html")
    assert status == 1
    a, b = record()["results"]
    assert (a["replaced"], b["replaced"]) == (True, False)
    assert b["reason"] == "no person to replace (the mask is empty)"
    assert np.array_equal(load_image("out/b__s.png"), load_image("photos/b.png"))
    captured = capsys.readouterr()
    assert "copied: photos/b.png: no person to replace" in captured.err
    assert "1 of 2 photos replaced" in captured.out
    assert "mask is empty" in Path("page.html").read_text()


def test_one_photo_without_a_person_is_copied(photos, capsys):
    assert run("--image", "photos/b.png", "--mask", "masks/b.png", "--with", "stickers/s.png") == 1
    assert np.array_equal(load_image("out/b__s.png"), load_image("photos/b.png"))
    assert "copied: photos/b.png" in capsys.readouterr().err


def test_all_with_all(photos):
    shutil.copy("photos/a.png", "photos/c.png")
    shutil.copy("masks/a.png", "masks/c.png")
    Path("photos/b.png").unlink()
    assert run("--image", "photos", "--mask", "masks", "--with", "stickers", "--pairs", "all") == 0
    assert [e["output"] for e in record()["results"]] == ["a__a.png", "a__s.png", "c__a.png", "c__s.png"]


def test_one_bad_photo_does_not_stop_the_others(photos, capsys):
    Path("photos/a.png").write_bytes(b"no picture")
    shutil.copy("masks/a.png", "masks/c.png")
    figure()[0].save("photos/c.png")
    assert run("--image", "photos", "--mask", "masks", "--with", "stickers/s.png") == 1
    assert [e["output"] for e in record()["results"]] == ["b__s.png", "c__s.png"]
    assert record()["failed"][0]["image"] == "photos/a.png"
    assert "failed: photos/a.png: photos/a.png: not a readable picture" in capsys.readouterr().err


def test_a_mask_model_finds_and_judges(photos, tmp_path):
    torch.manual_seed(0)
    network = HieraFPN(
        encoder_kwargs={"embed_dim": 8, "stages": [1, 1, 1, 1]}, img_size=64, decoder_channels=16, fine_channels=[8, 4]
    )
    model = MaskPipeline(network)
    model.save_pretrained("model")
    middle = np.median(model("photos/a.png").probabilities[0])  # random weights, so half of the photo is a person
    found = ("--mask_model", "model", "--presence_threshold", "0", "--mask_threshold", middle)
    assert run("--image", "photos/a.png", "--with", "stickers/s.png", *found) == 0
    (entry,) = record()["results"]
    assert 0 < entry["presence_before"] < 1
    assert run(*ONE, "--mask_model", "model") == 0
    (entry,) = record()["results"]
    assert 0 < entry["presence_after"] < 1
    assert 0 <= entry["found_after"] <= 1


def test_a_prompt_through_a_diffusion_pipeline(photos, tmp_path):
    folder = tiny_pipeline(tmp_path / "tiny")
    arguments = ("--prompt", "a man", "--fill_model", folder, "--num_inference_steps", "1", "--resolution", "32")
    assert run(*ONE[:4], *arguments) == 0
    (entry,) = record()["results"]
    assert (entry["output"], entry["background_max_abs_diff"]) == ("a.png", 0)
    assert record()["settings"]["prompt"] == "a man"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --image"),
        (("--image", "photos/a.png"), "say what to put in"),
        (("--image", "nowhere.png", "--with", "stickers/s.png"), "--image nowhere.png: no such file"),
        (("--image", "photos/a.png", "--with", "gone.png"), "--with gone.png: no such file"),
        ((*ONE, "--reference", "stickers/s.png"), "--with or --reference, not both"),
        ((*ONE, "--fill", "diffusion"), "needs --fill_model"),
        ((*ONE, "--start_sigma", "2"), "--start_sigma is for --fill consistency; this is opencv"),
        ((*ONE, "--mask_model", "gone"), "model 'gone': no such folder"),
        ((*ONE[:4], "--prompt", "a man", "--fill_model", "gone"), "model 'gone': no such folder"),
        ((*ONE, "--grow", "0.5"), "grow is 0.5; give 0 to 0.1"),
        ((*ONE, "--components", "two"), "'two': give largest, all or a number"),
        ((*ONE, "--region_scale", "wide"), "'wide': give a number or photo"),
        ((*ONE, "--class_label", "1"), "the opencv fill cannot follow a class"),
        (("--image", "photos", "--mask", "stickers", "--with", "stickers/s.png"), "no mask is called b"),
        (("--image", "photos", "--mask", "masks", "--with", "stickers/s.png", "--output", "x.png"), "2 results"),
        ((*ONE, "--output", "photos/a.png"), "would overwrite an input"),
        ((*ONE[:4], "--reference", "stickers/s.png", "--fill", "opencv"), "cannot follow a reference"),
    ],
)
def test_mistakes_are_one_line(photos, capsys, arguments, message):
    assert message in refused(capsys, *arguments)
