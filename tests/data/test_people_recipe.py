import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from mask_samples import SQUARE, write_coco, write_pairs
from PIL import Image

from lit_insert.data.journal import JOURNAL
from lit_insert.data.mask_folder import MaskFolder

SCRIPT = Path(__file__).parents[2] / "data" / "prepare_people.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("prepare_people", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(out):
    with (out / "decisions.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def files(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and p.name != JOURNAL}


def loose(root, out, *more):
    return [
        "--images",
        str(root / "images"),
        "--masks",
        str(root / "masks"),
        "--out",
        str(out),
        "--workers",
        "1",
        *more,
    ]


def coco(root, out, *more):
    files = ("--annotations", str(root / "all.json"), "--images", str(root / "pictures"))
    return [*files, "--out", str(out), "--val_fraction", "0", "--workers", "1", *more]


def test_loose_folders_become_a_folder_that_trains(script, tmp_path, capsys):
    write_pairs(tmp_path, 20, mask_size=(32, 32))
    out = tmp_path / "out"
    assert script.main(loose(tmp_path, out, "--val_fraction", "0.2", "--test_fraction", "0.2")) == 0
    assert capsys.readouterr().out.startswith("20 pictures (20 new)")
    parts = {s: MaskFolder(str(out), s) for s in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == 20
    assert (out / "overview.jpg").is_file()
    picture = parts["train"].picture(0)
    name = picture.id.split("/")[1]
    assert (out / "train" / "images" / f"{name}.jpg").read_bytes() == (tmp_path / "images" / f"{name}.jpg").read_bytes()
    with Image.open(out / "train" / "masks" / f"{name}.png") as mask:
        assert mask.size == (64, 64)
        assert set(np.unique(mask)) == {0, 255}
    assert table(out)[name]["split"] == "train"
    assert float(table(out)[name]["coverage"]) == pytest.approx(float((picture.mask == 1).float().mean()), abs=1e-3)


def test_a_second_run_changes_nothing_and_a_missing_file_is_made_again(script, tmp_path, capsys):
    write_pairs(tmp_path, 6)
    out = tmp_path / "out"
    arguments = loose(tmp_path, out)
    assert script.main(arguments) == 0
    before = files(out)
    assert script.main(arguments) == 0
    assert files(out) == before
    next((out / "train" / "masks").iterdir()).unlink()
    capsys.readouterr()
    assert script.main(arguments) == 0
    assert "6 pictures (1 new)" in capsys.readouterr().out
    assert files(out) == before
    assert script.main([*arguments, "--min_area", "0.2"]) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_everything_left_out_has_a_reason(script, tmp_path, capsys):
    write_pairs(tmp_path, 9)
    write_pairs(tmp_path, 1, first=9, values=0)
    (tmp_path / "masks" / "001.png").unlink()
    (tmp_path / "images" / "002.jpg").unlink()
    (tmp_path / "images" / "003.jpg").write_bytes(b"torn")
    Image.new("L", (64, 20), 255).save(tmp_path / "masks" / "004.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "masks" / "005.png")
    out = tmp_path / "out"
    assert script.main(loose(tmp_path, out, "--sheet", "0")) == 0
    reasons = {name: row["reason"] for name, row in table(out).items() if row["reason"]}
    assert reasons == {
        "001": "no mask",
        "002": "no picture",
        "003": "broken",
        "004": "broken",
        "005": "objects too large",
        "009": "empty mask",
    }
    assert "another shape" in table(out)["004"]["fault"]
    shown = capsys.readouterr().err
    assert "003.jpg" in shown
    assert "no mask" in shown
    # Mended inputs are taken up by the next run.
    write_pairs(tmp_path, 5)
    assert script.main(loose(tmp_path, out, "--sheet", "0")) == 0
    assert "8 pictures (4 new)" in capsys.readouterr().out
    assert [n for n, row in table(out).items() if row["reason"]] == ["005", "009"]


def test_exchanged_masks_are_warned_of_and_turned(script, tmp_path, capsys):
    write_pairs(tmp_path, 5)
    for file in (tmp_path / "masks").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    assert script.main(loose(tmp_path, tmp_path / "wrong", "--sheet", "0")) == 0
    assert "use --invert" in " ".join(capsys.readouterr().err.split())
    assert script.main(loose(tmp_path, tmp_path / "right", "--sheet", "0", "--invert")) == 0
    assert "exchanged" not in capsys.readouterr().err
    assert MaskFolder(str(tmp_path / "right")).check(9).inverted == []


def test_coco_pictures_are_chosen_by_count_and_area(script, tmp_path, capsys):
    write_coco(tmp_path)
    assert script.main(coco(tmp_path, tmp_path / "out", "--max_count", "1")) == 0
    rows = table(tmp_path / "out")
    assert {name: row["reason"] for name, row in rows.items()} == {
        "1": "",
        "2": "too many objects",
        "3": "a crowd",
        "4": "no object",
        "5": "no object",
        "6": "a crowd",
    }
    assert rows["1"]["objects"] == "1"
    assert float(rows["1"]["coverage"]) == pytest.approx(400 / (48 * 64), abs=1e-4)
    assert MaskFolder(str(tmp_path / "out")).mask(0).sum() == 400


def test_crowds_can_be_marked(script, tmp_path, capsys):
    write_coco(tmp_path)
    assert script.main(coco(tmp_path, tmp_path / "out", "--crowd", "ignore", "--sheet", "2")) == 0
    assert "ignore_value: 127" in capsys.readouterr().err
    crowded = MaskFolder(str(tmp_path / "out"), ignore_value=127).mask(2)
    assert (crowded[:, :10] == 255).all()
    assert (crowded == 1).sum() == 400
    assert (MaskFolder(str(tmp_path / "out")).mask(2)[:, :10] == 0).all()


def test_pictures_can_be_shrunk(script, tmp_path):
    write_pairs(tmp_path, 3)
    assert script.main(loose(tmp_path, tmp_path / "out", "--size", "24", "--val_fraction", "0")) == 0
    picture = MaskFolder(str(tmp_path / "out")).picture(0)
    assert picture.mask.shape == (24, 24)


def test_a_name_of_a_subfolder_becomes_part_of_the_file_name(script, tmp_path):
    write_coco(tmp_path)
    (tmp_path / "pictures" / "deep").mkdir()
    (tmp_path / "pictures" / "1.png").rename(tmp_path / "pictures" / "deep" / "1.png")
    data = json.loads((tmp_path / "all.json").read_text())
    data["images"][0]["file_name"] = "deep/1.png"
    data["annotations"] = [dict(data["annotations"][0], segmentation=SQUARE)]
    (tmp_path / "all.json").write_text(json.dumps(data))
    assert script.main(coco(tmp_path, tmp_path / "out", "--sheet", "0")) == 0
    assert (tmp_path / "out" / "train" / "images" / "deep_1.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "none", "--masks", "none"], "none: no such folder"),
        (["--images", "none", "--annotations", "none.json"], "none: no such folder"),
        (["--images", ".", "--masks", ".", "--val_fraction", "1"], "leave something to train on"),
        (["--images", ".", "--masks", ".", "--negatives", "2"], "negatives is 2"),
    ],
)
def test_mistakes_are_one_line(script, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert script.main([*arguments, "--out", "out"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "out").exists()


def test_either_masks_or_annotations(script, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        script.main(["--images", str(tmp_path), "--out", str(tmp_path / "out")])
    assert error.value.code == 2
    assert "either --masks or --annotations" in capsys.readouterr().err
