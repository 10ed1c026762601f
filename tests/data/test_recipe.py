import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_samples import jpeg, scene, write_pipe
from datasets import load_dataset
from PIL import Image

from lit_insert.data.candidates import Candidate, folder_candidates, pipe_candidates
from lit_insert.data.check import check_data
from lit_insert.data.crops import CropRules
from lit_insert.data.folder import read_metadata
from lit_insert.data.journal import JOURNAL
from lit_insert.data.recipe import Settings, build
from lit_insert.errors import InputError

SMALL = CropRules(min_side=8)


class Blank:
    """Removes by painting the object grey."""

    name = "blank"

    def __init__(self):
        self.calls = 0

    def __call__(self, image, mask, key):
        self.calls += 1
        return Image.composite(Image.new("RGB", image.size, "grey"), image, mask)


def photos(root, count=30, suffix=".jpg"):
    for n in range(count):
        _, target, mask = scene(n)
        for kind, image in (("images", target), ("masks", mask)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            image.save(root / kind / f"{n:03d}{suffix if kind == 'images' else '.png'}")
    return folder_candidates(root / "images", root / "masks", "toy", "add it")[0]


def files(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_makes_triplets_that_datasets_and_the_check_accept(tmp_path):
    settings = Settings(SMALL, val_fraction=0.2, test_fraction=0.2)
    summary = build(photos(tmp_path), tmp_path / "out", settings, Blank())
    assert summary.new == sum(summary.made.values()) == 30
    assert set(summary.made) == {"train", "val", "test"}
    assert check_data(tmp_path / "out").ok
    rows = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {k: len(v) for k, v in rows.items()} == {
        "train": summary.made["train"],
        "validation": summary.made["val"],
        "test": summary.made["test"],
    }
    first = rows["train"][0]
    assert first["target_image"].size == (64, 64)
    assert first["instruction"] == "add it"


def test_boxes_and_pictures_fit_together(tmp_path):
    build(photos(tmp_path, 5), tmp_path / "out", Settings(SMALL, val_fraction=0, test_fraction=0), Blank())
    for record in read_metadata(tmp_path / "out" / "train"):
        target, mask = Image.open(record.target), Image.open(record.mask)
        assert record.box == mask.getbbox()
        assert set(np.unique(mask)) == {0, 255}
        outside = np.asarray(mask) == 0
        assert np.array_equal(np.asarray(Image.open(record.original))[outside], np.asarray(target)[outside])
        assert (np.asarray(Image.open(record.original))[~outside] == 128).all()


def test_a_second_run_changes_nothing(tmp_path):
    candidates, settings = photos(tmp_path), Settings(SMALL)
    build(candidates, tmp_path / "out", settings, Blank())
    before, again = files(tmp_path / "out"), Blank()
    summary = build(candidates, tmp_path / "out", settings, again)
    assert (summary.new, again.calls, sum(summary.made.values())) == (0, 0, 30)
    assert files(tmp_path / "out") == before


def test_a_lost_picture_is_made_again(tmp_path):
    candidates, settings = photos(tmp_path), Settings(SMALL)
    build(candidates, tmp_path / "out", settings, Blank())
    before = files(tmp_path / "out")
    lost = next((tmp_path / "out").glob("*/original/toy-007*"))
    lost.unlink()
    assert build(candidates, tmp_path / "out", settings, Blank()).new == 1
    after = files(tmp_path / "out")
    assert {k: v for k, v in after.items() if k.name != JOURNAL} == {
        k: v for k, v in before.items() if k.name != JOURNAL
    }


def test_more_pictures_can_be_added(tmp_path):
    candidates, settings = photos(tmp_path), Settings(SMALL)
    build(candidates[:10], tmp_path / "out", settings, Blank())
    summary = build(candidates, tmp_path / "out", settings, Blank())
    assert summary.new == 20
    build(candidates, tmp_path / "whole", settings, Blank())
    assert files(tmp_path / "out").keys() == files(tmp_path / "whole").keys()
    metadata = "train/metadata.csv"
    assert (tmp_path / "out" / metadata).read_text() == (tmp_path / "whole" / metadata).read_text()


def test_other_settings_need_another_folder(tmp_path):
    candidates = photos(tmp_path, 3)
    build(candidates, tmp_path / "out", Settings(SMALL), Blank())
    with pytest.raises(InputError, match="was made with size 512, not 256; choose another folder"):
        build(candidates, tmp_path / "out", Settings(SMALL, size=256), Blank())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is not empty"):
        build(candidates, tmp_path / "mine", Settings(SMALL), Blank())


def test_an_interrupt_leaves_a_valid_folder_and_the_next_run_finishes_it(tmp_path):
    candidates, settings = photos(tmp_path), Settings(SMALL)
    ticks = iter(range(1000))

    def interrupt():
        if next(ticks) == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(candidates, tmp_path / "out", settings, Blank(), tick=interrupt)
    half = check_data(tmp_path / "out")
    assert half.ok
    assert 0 < sum(s.count for s in half.splits) < 30
    build(candidates, tmp_path / "out", settings, Blank())
    build(candidates, tmp_path / "whole", settings, Blank())
    left, right = files(tmp_path / "out"), files(tmp_path / "whole")
    assert {k: v for k, v in left.items() if k.name != JOURNAL} == {k: v for k, v in right.items() if k.name != JOURNAL}


def test_a_journal_line_cut_short_and_leftovers_are_cleared(tmp_path):
    candidates, settings = photos(tmp_path, 5), Settings(SMALL, val_fraction=0, test_fraction=0)
    build(candidates, tmp_path / "out", settings, Blank())
    journal = tmp_path / "out" / JOURNAL
    journal.write_text(journal.read_text()[:-40])
    leftover = tmp_path / "out/train/target/.toy-001-0.abc.png"
    leftover.write_bytes(b"half")
    assert build(candidates, tmp_path / "out", settings, Blank()).new == 1
    assert not leftover.exists()
    assert check_data(tmp_path / "out").splits[0].count == 5


def test_every_reason_for_dropping_is_counted(tmp_path):
    candidates = photos(tmp_path, 6)
    Image.new("L", (64, 64)).save(tmp_path / "masks/000.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "masks/001.png")
    Image.new("L", (64, 30), 255).save(tmp_path / "masks/002.png")
    (tmp_path / "images/003.jpg").write_bytes(b"")
    summary = build(candidates, tmp_path / "out", Settings(SMALL), Blank())
    assert summary.dropped == {
        "empty mask": 1,
        "too large an area": 1,
        "mask of another shape": 1,
        "broken": 1,
    }
    assert summary.broken == {str(tmp_path / "images/003.jpg"): "the file is empty"}
    assert sum(summary.made.values()) == 2


def test_a_mended_picture_is_tried_again(tmp_path):
    candidates = photos(tmp_path, 3)
    good = (tmp_path / "images/001.jpg").read_bytes()
    (tmp_path / "images/001.jpg").write_bytes(good[:100])
    assert build(candidates, tmp_path / "out", Settings(SMALL), Blank()).dropped["broken"] == 1
    (tmp_path / "images/001.jpg").write_bytes(good)
    summary = build(candidates, tmp_path / "out", Settings(SMALL), Blank())
    assert summary.new == 1
    assert not summary.dropped


def test_masks_of_another_size_and_large_pictures_are_scaled(tmp_path):
    _, target, mask = scene(1, shape=(300, 200), box=(50, 40, 150, 160))
    for kind, image in (("images", target), ("masks", mask.resize((150, 100)))):
        (tmp_path / kind).mkdir()
        image.save(tmp_path / kind / "a.png")
    candidates, _ = folder_candidates(tmp_path / "images", tmp_path / "masks")
    settings = Settings(SMALL, size=100, val_fraction=0, test_fraction=0)
    build(candidates, tmp_path / "out", settings, Blank())
    record = read_metadata(tmp_path / "out/train")[0]
    assert Image.open(record.target).size == Image.open(record.mask).size == (150, 100)
    assert np.abs(np.array(record.box) - (25, 20, 75, 80)).max() <= 1


def test_folders_pair_by_name(tmp_path):
    photos(tmp_path, 4)
    (tmp_path / "masks/002.png").unlink()
    candidates, unpaired = folder_candidates(tmp_path / "images", tmp_path / "masks")
    assert [c.image_id for c in candidates] == ["000", "001", "003"]
    assert unpaired == ["002"]
    Image.new("RGB", (4, 4)).save(tmp_path / "images/001.png")
    with pytest.raises(InputError, match="has the same name"):
        folder_candidates(tmp_path / "images", tmp_path / "masks")
    (tmp_path / "strange").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "strange/zebra.png")
    with pytest.raises(InputError, match="no file of"):
        folder_candidates(tmp_path / "masks", tmp_path / "strange")


def test_ids_are_safe_file_names_and_unique():
    def named(*parts):
        return Candidate(*parts, target=b"", mask=b"").id

    assert named("COCO", "000123", "7") == "COCO-000123-7"
    strange = [
        ("a", "../../etc", "0"),
        ("a", ".._.._etc", "0"),
        ("a/..", "..", "0"),
        ("a-b", "c", "0"),
        ("a", "b-c", "0"),
    ]
    names = [named(*parts) for parts in strange]
    assert len(set(names)) == len(names)
    assert all("/" not in n and not n.startswith(".") for n in names)


def test_splits_go_by_picture():
    settings = Settings(val_fraction=0.3, test_fraction=0.3)
    for image in range(200):
        one, other = (Candidate("COCO", str(image), a, b"", b"") for a in "01")
        assert settings.split_of(one) == settings.split_of(other)
    counts = [settings.split_of(Candidate("COCO", str(i), "0", b"", b"")) for i in range(2000)]
    assert abs(counts.count("val") / 2000 - 0.3) < 0.04
    assert abs(counts.count("test") / 2000 - 0.3) < 0.04


@pytest.mark.parametrize(
    "wrong", [{"val_fraction": -0.1}, {"val_fraction": 0.5, "test_fraction": 0.5}, {"suffix": ".gif"}]
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(InputError):
        Settings(**wrong)


def test_pipe_keeps_its_test_split_and_its_bytes(tmp_path):
    write_pipe(tmp_path, 40, mask_order=np.random.default_rng(0).permutation(40))
    write_pipe(tmp_path, 5, "test")  # the same objects as the first five of train, whose pictures have one more
    candidates = list(pipe_candidates(str(tmp_path / "PIPE"), str(tmp_path / "PIPE_Masks")))
    assert len(candidates) == 45
    summary = build(candidates, tmp_path / "out", Settings(SMALL, val_fraction=0.2), Blank())
    assert summary.made["test"] == 5
    assert summary.dropped == {"same object twice": 5, "picture of the test split": 1}
    check = check_data(tmp_path / "out")
    assert check.problems == []
    record = {r.id: r for r in read_metadata(tmp_path / "out/test")}["LVIS-0000000-2002"]
    source, target, mask = scene(2)
    assert record.target.read_bytes() == jpeg(target)
    assert record.original.read_bytes() == jpeg(source)
    assert record.box == mask.getbbox()
    assert record.instruction == "put in thing 2"


def test_pipe_without_a_test_split(tmp_path):
    write_pipe(tmp_path, 6)
    assert len(list(pipe_candidates(str(tmp_path / "PIPE"), str(tmp_path / "PIPE_Masks"), limit=4))) == 4


SCRIPT = Path(__file__).parents[2] / "data" / "prepare_pipe.py"


def command(root, *more):
    return [
        sys.executable, str(SCRIPT), "--images", str(root / "images"), "--masks", str(root / "masks"),
        "--out", str(root / "out"), "--min_side", "8", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_script_survives_being_stopped(tmp_path, sent):
    photos(tmp_path, 60)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(tmp_path), stderr=subprocess.DEVNULL, env=environment)
    journal = tmp_path / "out" / JOURNAL
    while process.poll() is None and not (journal.exists() and journal.read_text().count("\n") > 8):
        time.sleep(0.005)
    process.send_signal(sent)
    code = process.wait(60)
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[sent] or code == 0
    if sent != signal.SIGKILL:
        assert check_data(tmp_path / "out").ok
    again = subprocess.run(command(tmp_path), capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("60 triplets")
    assert check_data(tmp_path / "out").ok
    rows = [r for p in (tmp_path / "out").glob("*/metadata.csv") for r in csv.DictReader(p.open())]
    assert len({r["triplet_id"] for r in rows}) == len(rows) == 60


def test_the_script_names_mistakes_in_one_line(tmp_path):
    photos(tmp_path, 2)
    for arguments, message in (
        (["--out", str(tmp_path / "o")], "give either --images and --masks"),
        ([*command(tmp_path)[2:], "--pipe", "x"], "give either"),
        (["--images", str(tmp_path / "none"), "--masks", str(tmp_path), "--out", str(tmp_path / "o")], "none"),
    ):
        result = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
        assert result.returncode == 2
        assert message in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "o").exists()


def test_journal_says_what_became_of_everything(tmp_path):
    candidates = photos(tmp_path, 4)
    Image.new("L", (64, 64)).save(tmp_path / "masks/002.png")
    build(candidates, tmp_path / "out", Settings(SMALL), Blank())
    lines = [json.loads(line) for line in (tmp_path / "out" / JOURNAL).read_text().splitlines()]
    assert lines[0]["remover"] == "blank"
    assert {"id": "toy-002-0", "dropped": "empty mask"} in lines
    assert len(lines) == 5


def test_real_photos(people, tmp_path):
    from lit_insert.data.removers import OpenCVRemover

    candidates, _ = folder_candidates(people / "images", people / "masks", "people", "add a person")
    summary = build(
        candidates[:12], tmp_path / "out", Settings(size=128, rules=CropRules(min_side=16)), OpenCVRemover()
    )
    assert sum(summary.made.values()) >= 8
    assert check_data(tmp_path / "out").ok
