import logging
import os

import numpy as np
import pytest
import torch
from data_samples import scene
from mask_samples import write_pairs
from PIL import Image

from lit_insert.data.loading import BrokenSample
from lit_insert.data.mask_folder import MaskFolder, pair, read_mask, split_of
from lit_insert.errors import InputError

DISC = np.zeros((40, 30), np.uint8)
DISC[10:30, 5:20] = 1


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def rgba(grey, alpha):
    return np.dstack([grey, grey, grey, alpha])


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("full.png", DISC * 255),
        ("unit.png", DISC),
        ("bits.png", DISC.astype(bool)),
        ("sixteen.png", DISC.astype(np.uint16) * 65535),
        ("colour.png", np.dstack([DISC * 255] * 3)),
        ("lossy.jpg", DISC * 255),
        ("alpha.png", rgba(np.full_like(DISC, 200), DISC * 255)),
        ("opaque.png", rgba(DISC * 255, np.full_like(DISC, 255))),
        ("soft.png", np.where(DISC == 1, 140, 110).astype(np.uint8)),
    ],
)
def test_masks_of_every_kind(tmp_path, name, array):
    mask = read_mask(save(tmp_path / name, array))
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, DISC)


def test_palettes_go_by_their_colours(tmp_path):
    image = Image.fromarray(DISC).convert("P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(tmp_path / "p.png")
    assert np.array_equal(read_mask(tmp_path / "p.png"), 1 - DISC)


def test_a_jpeg_has_no_halo(tmp_path):
    # Seams of an 8x8 block ring: values between 1 and 30 around the object, which a test for > 0 would take in.
    path = save(tmp_path / "m.jpg", DISC * 255, quality=30)
    assert ((np.asarray(Image.open(path)) > 0) & (DISC == 0)).any()
    assert np.array_equal(read_mask(path), DISC)


def test_a_value_may_be_ignored(tmp_path):
    array = DISC * 255
    array[:5] = 127
    path = save(tmp_path / "m.png", array)
    assert (read_mask(path, 127)[:5] == 255).all()
    assert (read_mask(path)[:5] == 0).all()
    assert np.array_equal(read_mask(path, 127)[5:], DISC[5:])


def test_masks_follow_their_upright_pictures(tmp_path):
    write_pairs(tmp_path, 1)
    _, picture, mask = scene(0, shape=(80, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying down, to be turned by a quarter
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "images" / "000.jpg", exif=exif, quality=95)
    mask.resize((160, 120), Image.Resampling.NEAREST).save(tmp_path / "masks" / "000.png")
    got = MaskFolder(str(tmp_path)).picture(0)
    assert got.image.shape == (3, 60, 80)
    assert np.array_equal(got.mask, np.asarray(mask) // 255)
    assert (got.image.float() - torch.from_numpy(np.array(picture)).permute(2, 0, 1)).abs().mean() < 8


def test_a_mask_of_another_shape_is_broken(tmp_path):
    write_pairs(tmp_path, 2, mask_size=(64, 90))
    with pytest.raises(BrokenSample, match="the mask is 64x90, its upright picture 64x64"):
        MaskFolder(str(tmp_path)).picture(0)


def test_siblings_with_a_prefix(tmp_path):
    write_pairs(tmp_path / "a", 4)
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in (tmp_path / "a" / "images").iterdir():
        os.rename(file, flat / file.name)
        mask = Image.open(tmp_path / "a" / "masks" / f"{file.stem}.png")
        mask.save(flat / f"mask_{file.name}")  # as JPEG
    folder = MaskFolder(str(flat))
    assert [name for name, _ in folder.files] == ["000", "001", "002", "003"]
    assert 0.2 < folder.picture(2).mask.float().mean() < 0.5


def test_a_prefix_within_the_masks(tmp_path):
    write_pairs(tmp_path, 3, prefix="mask_")
    assert list(pair(tmp_path)) == ["000", "001", "002"]
    write_pairs(tmp_path, 1)
    with pytest.raises(InputError, match=r"is a mask of 000 too"):
        pair(tmp_path)


def test_own_subfolders(tmp_path):
    write_pairs(tmp_path / "train", 5)
    write_pairs(tmp_path / "val", 2)
    train, val, every = (MaskFolder(str(tmp_path), split) for split in ("train", "val", "all"))
    assert (len(train), len(val), len(every)) == (5, 2, 7)
    assert train.picture(0).id == "train/000"
    assert not train.origins() & val.origins()
    with pytest.raises(InputError, match="no folder test/ there, only train, val"):
        MaskFolder(str(tmp_path), "test")
    assert len(MaskFolder(str(tmp_path), "val", val_count=4)) == 2  # subfolders win


def test_a_split_is_a_function_of_the_names():
    names = [str(n) for n in range(50)]
    parts = split_of(names, 10, 5)
    assert [len(parts[s]) for s in ("train", "val", "test", "all")] == [35, 10, 5, 50]
    assert set(parts["train"]) | set(parts["val"]) | set(parts["test"]) == set(names)
    assert split_of(names[::-1], 10, 5) == parts
    assert split_of(names, 10, 0)["val"] == parts["val"]
    # Golden: another machine, another year, the same pictures.
    assert split_of([str(n) for n in range(10)], 3, 0)["val"] == ["3", "6", "9"]


def test_the_folder_divides_into_disjoint_splits(tmp_path):
    write_pairs(tmp_path, 12)
    parts = [MaskFolder(str(tmp_path), s, val_count=3, test_count=2) for s in ("train", "val", "test")]
    assert [len(p) for p in parts] == [7, 3, 2]
    assert len(set().union(*(p.origins() for p in parts))) == 12
    assert len(MaskFolder(str(tmp_path), "all", val_count=3)) == 12


def test_what_does_not_pair_is_named_at_once(tmp_path):
    write_pairs(tmp_path, 12)
    (tmp_path / "images" / "003.jpg").unlink()
    (tmp_path / "masks" / "007.png").unlink()
    (tmp_path / "masks" / "009.png").unlink()
    with pytest.raises(InputError) as error:
        MaskFolder(str(tmp_path))
    text = str(error.value)
    assert "2 pictures without a mask (007, 009)" in text
    assert "1 masks without a picture (003)" in text
    assert "\n" not in text


def test_two_pictures_of_one_name(tmp_path):
    write_pairs(tmp_path, 2)
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "001.png")
    with pytest.raises(InputError, match="has the same name"):
        MaskFolder(str(tmp_path))


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_links_out_of_the_folder_are_refused(tmp_path, kind):
    write_pairs(tmp_path / "set", 3)
    file = next((tmp_path / "set" / kind).glob("001.*"))
    os.rename(file, tmp_path / f"elsewhere{file.suffix}")
    file.symlink_to(tmp_path / f"elsewhere{file.suffix}")
    with pytest.raises(InputError, match="leads out of"):
        MaskFolder(str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "nothing is set aside for val; give val_count"),
        ({"val_count": 12}, "12 pictures are too few"),
        ({"val_count": -1}, "0 or more"),
        ({"masks": "covers"}, "no covers/"),
        ({"images": "photos"}, "neither a folder photos/ nor files"),
    ],
)
def test_impossible_folders(tmp_path, options, message):
    write_pairs(tmp_path, 12)
    if options.get("images"):
        Image.new("RGB", (8, 8)).save(tmp_path / "loose.png")
    with pytest.raises(InputError, match=message):
        MaskFolder(str(tmp_path), **options)


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        MaskFolder(str(tmp_path / "none"))


def test_nothing_but_empty_masks_is_an_error(tmp_path):
    write_pairs(tmp_path, 4, values=0)
    with pytest.raises(InputError, match="all 4 masks are empty"):
        MaskFolder(str(tmp_path)).check(100)


def test_exchanged_masks_are_seen_and_mended(tmp_path, caplog):
    write_pairs(tmp_path, 6)
    for file in (tmp_path / "masks").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    report = MaskFolder(str(tmp_path)).check(100)
    assert report.wrong_polarity
    with caplog.at_level(logging.WARNING):
        report.warn()
    assert "set invert: true" in caplog.text
    assert "000, 001" in caplog.text
    mended = MaskFolder(str(tmp_path), invert=True)
    assert mended.check(100).problems() == []
    assert np.array_equal(mended.mask(0), np.asarray(scene(0)[2]) // 255)


def test_a_check_of_some_is_spread_over_all(tmp_path):
    write_pairs(tmp_path, 12)
    (tmp_path / "masks" / "006.png").write_bytes(b"torn")
    report = MaskFolder(str(tmp_path)).check(4)
    assert report.looked_at == 4
    assert list(report.broken) == ["006"]


def test_the_people_divide_into_200_and_40(people):
    train, val = (MaskFolder(str(people), split, val_count=40) for split in ("train", "val"))
    assert (len(train), len(val)) == (200, 40)
    assert not train.origins() & val.origins()
    for index in (0, 20, 39):
        picture = val.picture(index)
        assert picture.image.shape[1:] == picture.mask.shape
        assert set(picture.mask.unique().tolist()) == {0, 1}
    assert val.check(40).problems() == []
