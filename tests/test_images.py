import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from lit_insert.errors import InputError
from lit_insert.images import (
    as_pictures,
    fit_within,
    flatten_alpha,
    image_grid,
    list_images,
    load_image,
    save_image,
    to_pil,
    to_tensor,
)


def quadrants() -> Image.Image:
    """Left half red, right half blue, lower left green: no symmetry that hides a wrong turn."""
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:, :6] = (255, 0, 0)
    pixels[:, 6:] = (0, 0, 255)
    pixels[4:, :6] = (0, 255, 0)
    return Image.fromarray(pixels)


STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(tmp_path, orientation):
    upright = quadrants()
    stored = upright.transpose(STORED_AS[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    loaded = load_image(tmp_path / "a.png")
    assert np.array_equal(np.asarray(loaded), np.asarray(upright))
    save_image(loaded, tmp_path / "b.png")
    assert np.array_equal(np.asarray(load_image(tmp_path / "b.png")), np.asarray(upright))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257 * 10, 257 * 128, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 10, 128, 255]
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.asarray(load_image(tmp_path / "a.tif", mode="L"))[0].tolist() == [0, 10, 128, 255]


def sixteen_bit_rgb_png(path, colour):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">3H", *colour) * 2
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    )


def test_sixteen_bit_rgb(tmp_path):
    sixteen_bit_rgb_png(tmp_path / "a.png", (65535, 32896, 0))
    assert load_image(tmp_path / "a.png").getpixel((1, 0)) == (255, 128, 0)


def test_float_and_32_bit_pixels_are_refused(tmp_path):
    Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(np.full((2, 2), 70_000, np.int32)).save(tmp_path / "i.tif")
    for name, what in (("f.tif", "floating-point"), ("i.tif", "32-bit")):
        with pytest.raises(InputError, match=f"{name}: {what}"):
            load_image(tmp_path / name)


def test_palette_cmyk_one_bit_and_grey_alpha(tmp_path):
    quadrants().convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    assert load_image(tmp_path / "p.png").getpixel((0, 0)) == (255, 0, 0)
    quadrants().convert("CMYK").save(tmp_path / "c.jpg", quality=100)
    red = load_image(tmp_path / "c.jpg")
    assert red.mode == "RGB"
    assert np.allclose(red.getpixel((1, 1)), (255, 0, 0), atol=12)
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "1.png")
    assert np.asarray(load_image(tmp_path / "1.png", mode="L"))[0].tolist() == [255, 0]
    grey = Image.merge("LA", (Image.new("L", (2, 1), 0), Image.fromarray(np.array([[255, 0]], np.uint8))))
    grey.save(tmp_path / "la.png")
    assert np.asarray(load_image(tmp_path / "la.png"))[0].tolist() == [[0, 0, 0], [255, 255, 255]]
    assert np.asarray(load_image(tmp_path / "la.png", mode="RGBA"))[0, :, 3].tolist() == [255, 0]


def test_palette_transparency_and_background(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "p.png", transparency=0)
    loaded = load_image(tmp_path / "p.png", background=(10, 20, 30))
    assert np.asarray(loaded)[0].tolist() == [[10, 20, 30], [0, 0, 255]]


def test_alpha_is_kept_or_flattened(tmp_path):
    Image.new("RGBA", (3, 3), (255, 0, 0, 128)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", mode="RGBA").getpixel((0, 0)) == (255, 0, 0, 128)
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 127, 127)
    assert flatten_alpha(load_image(tmp_path / "a.png", mode="RGBA"), (0, 0, 0)).getpixel((0, 0)) == (
        128,
        0,
        0,
    )
    opaque = Image.new("RGB", (3, 3), (1, 2, 3))
    opaque.save(tmp_path / "o.png")
    assert load_image(tmp_path / "o.png", mode="RGBA").getpixel((0, 0)) == (1, 2, 3, 255)


def bomb(path, side=60_000):
    """A PNG of a few kB that claims side*side pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    idat = zlib.compress(bytes(10_000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", idat) + chunk(b"IEND", b""))


def test_broken_files_are_named_in_one_line(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not a picture")
    quadrants().resize((200, 200)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder.png").mkdir()
    bomb(tmp_path / "bomb.png")
    expected = {
        "empty.png": "empty",
        "text.jpg": "not a readable picture",
        "cut.jpg": "not a readable picture",
        "folder.png": "is a folder",
        "bomb.png": "pixels",
        "absent.png": "no such file",
    }
    for name, reason in expected.items():
        with pytest.raises(InputError, match=reason) as caught:
            load_image(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_pixel_limit_is_checked_before_decoding(tmp_path):
    quadrants().save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: 12x8 pixels is over the limit of 95"):
        load_image(tmp_path / "a.png", max_pixels=95)
    assert load_image(tmp_path / "a.png", max_pixels=96).size == (12, 8)


def test_icc_profile_of_rgb_survives_and_of_cmyk_does_not(tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    quadrants().save(tmp_path / "a.jpg", icc_profile=profile)
    save_image(load_image(tmp_path / "a.jpg"), tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as saved:
        assert saved.info["icc_profile"] == profile
    quadrants().convert("CMYK").save(tmp_path / "c.jpg", icc_profile=profile)
    assert "icc_profile" not in load_image(tmp_path / "c.jpg").info


def test_save_is_atomic_and_flattens_for_jpeg(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "a.jpg"
    save_image(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), target)
    assert load_image(target).getpixel((3, 3)) == (255, 255, 255)
    before = target.read_bytes()

    def full(self, where, **options):
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_image(Image.new("RGB", (8, 8)), target)
    assert target.read_bytes() == before
    assert [p.name for p in target.parent.iterdir()] == ["a.jpg"]


def test_save_refuses_unknown_suffix(tmp_path):
    with pytest.raises(InputError, match="unknown picture suffix"):
        save_image(quadrants(), tmp_path / "a.xyz")


def test_tensor_round_trip_is_exact():
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = to_tensor(Image.fromarray(values))
    assert tensor.shape == (3, 16, 16)
    assert tensor.dtype == torch.float32
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert np.array_equal(np.asarray(to_pil(tensor)), values)


def test_to_pil_clips_masks_and_refuses_nan():
    assert to_pil(torch.full((3, 1, 1), 9.0)).getpixel((0, 0)) == (255, 255, 255)
    assert to_pil(torch.full((1, 1, 1), 0.5)).getpixel((0, 0)) == 128
    with pytest.raises(ValueError, match="NaN"):
        to_pil(torch.full((3, 1, 1), float("nan")))
    with pytest.raises(ValueError, match=r"\(2, 1, 1\)"):
        to_pil(torch.zeros(2, 1, 1))


def test_list_images_sorts_and_skips_other_files(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", "._a.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.webp").write_bytes(b"x")
    assert [p.name for p in list_images(tmp_path)] == ["a.png", "b.JPG"]
    assert [p.name for p in list_images(tmp_path, recursive=True)] == ["a.png", "b.JPG", "c.webp"]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no pictures"):
        list_images(tmp_path / "none")
    with pytest.raises(InputError, match="no such folder"):
        list_images(tmp_path / "absent")


def test_fit_within_keeps_the_aspect():
    assert fit_within(Image.new("RGB", (400, 100)), 128).size == (128, 32)
    assert fit_within(Image.new("RGB", (32, 16)), 128).size == (128, 64)
    assert fit_within(Image.new("RGB", (1000, 1)), 10).size == (10, 1)


def test_grid_places_pictures_and_gaps():
    red, mask = Image.new("RGB", (10, 10), (255, 0, 0)), torch.ones(1, 10, 10)
    grid = image_grid([[red, None], [mask, torch.zeros(3, 5, 10)]], pad=2, background=(0, 0, 255))
    assert grid.size == (26, 26)
    assert grid.getpixel((5, 5)) == (255, 0, 0)
    assert grid.getpixel((18, 5)) == (0, 0, 255)
    assert grid.getpixel((5, 18)) == (255, 255, 255)
    assert grid.getpixel((18, 18)) == (128, 128, 128)
    assert grid.getpixel((18, 14)) == (0, 0, 255)  # above the letterboxed picture


def test_grid_captions_take_room_and_draw_ink():
    red = Image.new("RGB", (64, 64), (255, 0, 0))
    plain = image_grid([[red, red]])
    titled = image_grid([[red, red]], captions=["source", "a very long heading that does not fit"])
    below = image_grid([[red, red]], captions=[["one", "two"]])
    assert titled.height == below.height > plain.height
    assert np.asarray(titled)[: titled.height - 64].min() < 100
    assert np.asarray(below)[-12:].min() < 100
    with pytest.raises(ValueError, match="at least one"):
        image_grid([[None]])


def test_pictures_come_in_many_forms_and_stand_upright(tmp_path):
    lying = Image.new("RGB", (6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as opened:
        found = as_pictures([tmp_path / "a.jpg", opened, torch.zeros(2, 3, 4, 6)], "image")
    assert [p.size for p in found] == [(4, 6), (4, 6), (6, 4), (6, 4)]
    assert as_pictures(found, "image")[1].size == (4, 6)  # turned once only
    for wrong, message in ((torch.zeros(4, 6), "a tensor must be"), ([], "no picture given"), (3, "not int")):
        with pytest.raises(InputError, match=message):
            as_pictures(wrong, "image")
