import numpy as np
import pytest
from PIL import Image

from lit_insert.data.image_folder import ImageFolder, class_order
from lit_insert.data.loading import BrokenSample
from lit_insert.errors import InputError


def put(path, colour=(200, 40, 40), size=(20, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def opened(*args, **options):
    source = ImageFolder(*map(str, args), **options)
    source.open()
    return source


def test_finds_pictures_at_any_depth_by_their_paths(tmp_path):
    for name in ("b.jpg", "a/deep/c.png", "a/d.JPEG", "e.gif", "f.webp"):
        put(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    source = opened(tmp_path)
    assert [source.name(i) for i in range(len(source))] == ["a/d.JPEG", "a/deep/c.png", "b.jpg", "e.gif", "f.webp"]
    assert source.classes == []
    for i in range(len(source)):
        image = source.picture(i)
        assert image.mode == "RGB"
        assert np.abs(np.asarray(image, int).mean((0, 1)) - (200, 40, 40)).max() < 8


def test_every_mode_becomes_upright_rgb(tmp_path):
    ramp = np.linspace(0, 255, 12, dtype=np.uint8)[:, None].repeat(20, 1)
    grey = Image.fromarray(ramp)
    grey.save(tmp_path / "grey.png")
    grey.convert("P").save(tmp_path / "palette.gif")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    clear = Image.new("RGBA", (20, 12), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    turned = Image.new("RGB", (12, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    source = opened(tmp_path)
    pictures = {source.name(i): source.picture(i) for i in range(5)}
    assert all(p.mode == "RGB" and p.size == (20, 12) for p in pictures.values())
    assert np.asarray(pictures["clear.png"]).min() == 255
    for name in ("palette.gif", "sixteen.png"):
        assert np.abs(np.asarray(pictures[name], int) - np.asarray(pictures["grey.png"], int)).max() <= 3, name


def test_classes_from_the_first_part_of_the_name(tmp_path):
    for name in ("10_a.png", "2_b_c.png", "x/2_d.png"):
        put(tmp_path / name)
    source = opened(tmp_path, labels="prefix")
    assert source.classes == ["2", "10"]
    assert {source.name(i): source.label(i) for i in range(3)} == {"10_a.png": 1, "2_b_c.png": 0, "x/2_d.png": 0}
    put(tmp_path / "plain.png")
    with pytest.raises(InputError, match=r"plain.png: no class prefix.*<class>_plain.png"):
        opened(tmp_path, labels="prefix")


def test_classes_from_folders(tmp_path):
    for name in ("dog/1.png", "cat/2.png", "cat/more/3.png"):
        put(tmp_path / name)
    source = opened(tmp_path, labels="folder")
    assert source.classes == ["cat", "dog"]
    assert sorted(source.label(i) for i in range(3)) == [0, 0, 1]
    put(tmp_path / "stray.png")
    with pytest.raises(InputError, match="not in a class folder"):
        opened(tmp_path, labels="folder")


def test_given_classes_fix_the_numbers(tmp_path):
    put(tmp_path / "b_1.png")
    source = opened(tmp_path, labels="prefix", classes=["c", "b"])
    assert (source.classes, source.label(0)) == (["c", "b"], 1)
    with pytest.raises(InputError, match="class 'b' is none of x, y"):
        opened(tmp_path, labels="prefix", classes=["x", "y"])
    with pytest.raises(InputError, match="labels is none"):
        ImageFolder(str(tmp_path), classes=["b"])
    with pytest.raises(InputError, match="twice"):
        ImageFolder(str(tmp_path), labels="prefix", classes=["b", "b"])
    with pytest.raises(InputError, match="classes"):
        opened(tmp_path).use_classes(["b"])


def test_class_order():
    assert class_order({"10", "9", "1"}) == ["1", "9", "10"]
    assert class_order({"10", "9", "a"}) == ["10", "9", "a"]


def test_splits_are_disjoint_complete_and_keep_variants_together(tmp_path):
    for n in range(60):
        for end in ("", "+hat", "+sunglasses"):
            put(tmp_path / f"{'1' if end else '0'}_face{n}{end}.png", size=(2, 2))
    options = {"labels": "prefix", "val_fraction": 0.2, "test_fraction": 0.2}
    parts = {s: opened(tmp_path, split=s, **options) for s in ("train", "val", "test")}
    names = {s: {p.name(i) for i in range(len(p))} for s, p in parts.items()}
    assert sum(map(len, names.values())) == len(set.union(*names.values())) == 180
    faces = {s: {n[2:].split("+")[0].removesuffix(".png") for n in group} for s, group in names.items()}
    assert sum(map(len, faces.values())) == 60
    assert all(len(f) > 4 for f in faces.values())
    assert all(p.classes == ["0", "1"] for p in parts.values())
    put(tmp_path / "0_another.png")
    again = opened(tmp_path, split="val", **options)
    assert {again.name(i) for i in range(len(again))} - {"0_another.png"} == names["val"]


def test_subfolders_are_splits(tmp_path):
    put(tmp_path / "train" / "a_1.png")
    put(tmp_path / "test" / "b_1.png")
    train, everything = (opened(tmp_path, split=s, labels="prefix") for s in ("train", "all"))
    assert train.name(0) == "train/a_1.png"
    assert len(train) == 1
    assert len(everything) == 2
    assert train.classes == ["a", "b"]
    with pytest.raises(InputError, match="no val/ beside train/, test/"):
        opened(tmp_path, split="val")


def test_an_empty_split_and_a_missing_folder_are_errors(tmp_path):
    put(tmp_path / "a.png")
    with pytest.raises(InputError, match="none of 1 pictures is in split 'val'"):
        opened(tmp_path, split="val", val_fraction=0.0)
    with pytest.raises(InputError, match="no such folder"):
        opened(tmp_path / "none")
    with pytest.raises(InputError, match="leave something to train on"):
        ImageFolder(str(tmp_path), val_fraction=0.7, test_fraction=0.4)


def test_a_broken_picture_is_a_broken_sample(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG no")
    with pytest.raises(BrokenSample, match=r"bad\.png"):
        opened(tmp_path).picture(0)
