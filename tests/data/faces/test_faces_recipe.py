import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lit_insert.data.faces.build import FaceSettings, build_faces
from lit_insert.data.faces.decisions import FaceRules, read_decisions
from lit_insert.data.faces.detection import Face
from lit_insert.data.faces.sheets import write_sheets
from lit_insert.data.faces.sprites import Sprite
from lit_insert.data.image_folder import ImageFolder
from lit_insert.errors import InputError

SKIN = (230, 180, 150)


class DiscDetector:
    """Finds the one disc that `photo` draws: what the recipe needs of a detector, without a real face."""

    name = "disc"

    def __init__(self):
        self.looked = 0

    def __call__(self, image):
        self.looked += 1
        pixels = np.asarray(image, int)
        rows, columns = np.nonzero(np.abs(pixels - SKIN).max(-1) < 12)
        if len(rows) < 20:
            return []
        x, y = float(columns.min()), float(rows.min())
        w, h = float(columns.max() + 1 - x), float(rows.max() + 1 - y)
        return [Face((x, y, w, h), 5.0, ((x + 0.3 * w, y + 0.4 * h), (x + 0.7 * w, y + 0.4 * h)))]


def photo(path, box=(40, 30, 80, 70), back=(20, 60, 20)):
    image = Image.new("RGB", (120, 90), back)
    if box:
        ImageDraw.Draw(image).ellipse(box, SKIN)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    photo(root / "ann.png")
    photo(root / "more" / "bob.JPG", (10, 10, 60, 60))
    photo(root / "empty.png", None)
    photo(root / "far.png", (40, 30, 46, 36))
    (root / "bad.jpg").write_bytes(b"no picture")
    (root / "twice.png").write_bytes((root / "ann.png").read_bytes())
    return root


def files(root):
    return {
        p.relative_to(root).as_posix(): (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()
    }


def build(photos, out, detector=None, sprites=(), **options):
    return build_faces(photos, out, FaceSettings(**options), detector or DiscDetector(), sprites=sprites)


SPRITES = (Sprite("drawn", "hat"), Sprite("drawn", "sunglasses"))


def test_every_input_gets_a_decision_and_none_is_changed(photos, tmp_path):
    before = files(photos)
    summary = build(photos, tmp_path / "out")
    assert files(photos) == before
    decisions = read_decisions(tmp_path / "out" / "decisions.csv")
    assert decisions == summary.decisions
    reasons = {name: d.reason.partition(":")[0] for name, d in decisions.items()}
    assert reasons == {
        "ann.png": "",
        "bad.jpg": "broken",
        "empty.png": "no face",
        "far.png": "face too small",
        "more/bob.JPG": "",
        "twice.png": "copy",
    }
    assert summary.reasons == {"broken": 1, "no face": 1, "face too small": 1, "copy": 1}
    assert decisions["ann.png"].x0 == "40"
    assert float(decisions["far.png"].ratio) == pytest.approx(7 / 90, abs=0.001)


def test_kept_photos_are_stored_byte_for_byte_under_their_class(photos, tmp_path):
    build(photos, tmp_path / "out", class_name="ann")
    made = tmp_path / "out" / "images"
    assert sorted(p.name for p in made.iterdir()) == ["ann_ann.png", "ann_bob.jpg"]
    assert (made / "ann_bob.jpg").read_bytes() == (photos / "more" / "bob.JPG").read_bytes()


def test_a_second_run_changes_nothing_and_looks_at_nothing(photos, tmp_path):
    out = tmp_path / "out"
    first = build(photos, out, sprites=SPRITES)
    write_sheets(photos, out, first.decisions)
    before = files(out)
    detector = DiscDetector()
    summary = build(photos, out, detector, sprites=SPRITES)
    write_sheets(photos, out, summary.decisions)
    assert detector.looked == summary.new == 0
    assert files(out) == before
    other = tmp_path / "other"
    write_sheets(photos, other, build(photos, other, sprites=SPRITES).decisions)
    assert {k: v[1] for k, v in files(other).items()} == {k: v[1] for k, v in before.items()}


def test_hats_and_sunglasses_are_variants_of_the_picture(photos, tmp_path):
    build(photos, tmp_path / "out", sprites=SPRITES, sunglasses_class="cool")
    made = tmp_path / "out" / "images"
    names = {"0_ann.png", "0_ann+hat.png", "cool_ann+sunglasses.png"}
    assert names <= {p.name for p in made.iterdir()}
    plain, hat, cool = (
        np.asarray(Image.open(made / n).convert("RGB"), int)
        for n in ("0_ann.png", "0_ann+hat.png", "cool_ann+sunglasses.png")
    )
    above = np.abs(hat - plain).max(-1) > 30
    across = np.abs(cool - plain).max(-1) > 30
    assert above[:46].any()
    assert not above[60:].any()
    assert across[40:56].any()
    assert not across[:30].any()
    source = ImageFolder(str(made), labels="prefix")
    source.open()
    assert source.classes == ["0", "cool"]


def test_crop_and_size(photos, tmp_path):
    build(photos, tmp_path / "out", crop=1.5, size=32, sprites=SPRITES)
    made = tmp_path / "out" / "images"
    assert {Image.open(p).size for p in made.iterdir()} == {(32, 32)}
    ann = np.asarray(Image.open(made / "0_ann.png"), int)
    disc = np.abs(ann - SKIN).max(-1) < 40
    assert disc[16, 16]
    assert disc.mean() == pytest.approx(np.pi / 4 / 1.5**2, rel=0.15)


def test_names_stay_unique_and_prefixes_are_not_doubled(tmp_path):
    root = tmp_path / "photos"
    photo(root / "a.png")
    photo(root / "b" / "a.png", back=(0, 0, 90))
    photo(root / "0_c+d.png", back=(90, 0, 0))
    build(root, tmp_path / "out")
    names = sorted(p.name for p in (tmp_path / "out" / "images").iterdir())
    assert names[0] == "0_a-" + names[0].removeprefix("0_a-")
    assert names[1:] == ["0_a.png", "0_c-d.png"]
    photo(root / "A.jpg", back=(0, 90, 90))  # sorts before the others, but they keep their names
    build(root, tmp_path / "out")
    after = sorted(p.name for p in (tmp_path / "out" / "images").iterdir())
    assert set(names) < set(after)
    assert len(after) == 4


def test_new_and_changed_inputs_are_taken_up(photos, tmp_path):
    out = tmp_path / "out"
    build(photos, out, sprites=SPRITES)
    before = files(out)
    photo(photos / "more" / "bob.JPG", None)
    photo(photos / "eve.png", (30, 20, 70, 60))
    os.remove(out / "images" / "0_ann+hat.png")
    detector = DiscDetector()
    summary = build(photos, out, detector, sprites=SPRITES)
    assert summary.new == detector.looked == 3
    after = files(out)
    assert after["images/0_ann+hat.png"][1] == before["images/0_ann+hat.png"][1]
    assert {n for n in after if "bob" in n} == set()
    assert {n for n in after if "eve" in n} == {f"images/0_eve{e}.png" for e in ("", "+hat", "+sunglasses")}
    assert summary.decisions["more/bob.JPG"].reason == "no face"


def test_a_copy_takes_over_when_the_original_changes(photos, tmp_path):
    out = tmp_path / "out"
    build(photos, out)
    photo(photos / "ann.png", None)
    summary = build(photos, out)
    assert not summary.decisions["ann.png"].kept
    assert summary.decisions["twice.png"].files == ["0_twice.png"]


def test_an_interrupt_keeps_what_was_decided(photos, tmp_path):
    class Stopping(DiscDetector):
        def __call__(self, image):
            if self.looked == 2:
                raise KeyboardInterrupt
            return super().__call__(image)

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        build(photos, out, Stopping())
    assert len(read_decisions(out / "decisions.csv")) == 3
    detector = DiscDetector()
    build(photos, out, detector)
    assert detector.looked == 2
    assert len(read_decisions(out / "decisions.csv")) == 6


def test_other_settings_and_foreign_folders_are_refused(photos, tmp_path):
    build(photos, tmp_path / "out")
    with pytest.raises(InputError, match=r"was made with crop 0\.0, not 2"):
        build(photos, tmp_path / "out", crop=2.0)
    with pytest.raises(InputError, match="was made with sprites"):
        build(photos, tmp_path / "out", sprites=SPRITES)
    with pytest.raises(InputError, match="is not empty and was not made by this recipe"):
        build(photos, photos / "more")
    with pytest.raises(InputError, match="cut at the first underscore"):
        FaceSettings(class_name="a_b")
    for bad in ({"crop": 0.5}, {"suffix": ".gif"}, {"class_name": ""}):
        with pytest.raises(InputError):
            FaceSettings(**bad)


def test_a_folder_inside_the_photos_is_not_read_back(photos):
    out = photos / "faces"
    first = build(photos, out)
    assert build(photos, out).decisions == first.decisions
    assert len(first.decisions) == 6


def test_sheets_show_kept_and_dropped(photos, tmp_path):
    out = tmp_path / "out"
    decisions = build(photos, out, sprites=SPRITES).decisions
    kept, dropped = (Image.open(p) for p in write_sheets(photos, out, decisions))
    assert kept.width > 7 * 192
    green = np.asarray(kept.convert("RGB"), int)
    assert ((green[..., 1] > 180) & (green[..., 0] < 90)).sum() > 100  # the box
    assert dropped.width > 3 * 192
    (photos / "ann.png").unlink()
    assert len(write_sheets(photos, out, decisions, count=2)) == 2
    only_broken = {"bad.jpg": replace(decisions["bad.jpg"])}
    assert write_sheets(photos, tmp_path / "none", only_broken) == []


SCRIPT = Path(__file__).parents[3] / "data" / "prepare_faces.py"


@pytest.fixture
def script(capfd):
    spec = importlib.util.spec_from_file_location("prepare_faces", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*args):
        code = module.main([str(a) for a in args])
        return code, *capfd.readouterr()

    return call


def test_the_script_on_photos_without_faces(photos, tmp_path, script):
    out = tmp_path / "out"
    code, text, _ = script("--images", photos, "--out", out, "--hat", "drawn")
    assert code == 1
    assert text.startswith("0 of 6 photos (6 new), 0 pictures")
    assert (out / "dropped.jpg").is_file()
    assert len((out / "decisions.csv").read_text().splitlines()) == 7


def test_the_script_names_mistakes_in_one_line(photos, tmp_path, script):
    code, text, error = script("--images", tmp_path / "none", "--out", tmp_path / "out")
    assert (code, text) == (2, "")
    assert error.splitlines()[-1].startswith("error: ")
    assert "no such folder" in error
    for more in (["--recogniser", "x.onnx"], ["--recogniser", "x.onnx", "--person", "y.png"]):
        with pytest.raises(SystemExit, match="2"):
            script("--images", photos, "--out", tmp_path / "out", *more)


def test_real_photos_twice(shared_data, tmp_path):
    photos = shared_data / "messi_unfiltered"
    if not photos.is_dir():
        pytest.skip("the shared photos are not here")
    from lit_insert.data.faces.detection import HaarDetector

    out, settings = tmp_path / "out", FaceSettings(FaceRules(), crop=2.0, size=64)
    first = build_faces(photos, out, settings, HaarDetector(), sprites=SPRITES, limit=8)
    before = files(out)
    again = build_faces(photos, out, settings, HaarDetector(), sprites=SPRITES, limit=8)
    assert files(out) == before
    kept = [d for d in again.decisions.values() if d.kept]
    assert 2 <= len(kept) < 8
    assert all(len(d.files) == 3 for d in kept)
    assert first.decisions == again.decisions
    assert json.loads((out / ".faces.json").read_text())["crop"] == 2.0
