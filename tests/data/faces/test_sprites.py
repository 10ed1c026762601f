import numpy as np
import pytest
from PIL import Image, ImageDraw

from lit_insert.data.faces.detection import Face
from lit_insert.data.faces.sprites import Sprite
from lit_insert.errors import InputError

RED = (220, 30, 20)


def sheet(tmp_path, size=(200, 100), box=(50, 40, 149, 59), colour=RED, name="s.png"):
    """A bar with wide transparent margins."""
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle(box, (*colour, 255))
    image.save(tmp_path / name)
    return tmp_path / name


def changed(before, after):
    """Bounding box (left, top, right, bottom) of what differs clearly, half-open."""
    difference = np.abs(np.asarray(before, int) - np.asarray(after, int)).max(-1) > 100
    rows, columns = np.flatnonzero(difference.any(1)), np.flatnonzero(difference.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def face(left=(80.0, 100.0), right=(120.0, 100.0)):
    return Face((60.0, 60.0, 80.0, 80.0), 5.0, (left, right))


def test_margins_are_cut_off(tmp_path):
    assert Sprite(sheet(tmp_path), "sunglasses").image.size == (100, 20)


def test_sunglasses_sit_on_the_eyes_with_their_own_colours_and_aspect(tmp_path):
    photo = Image.new("RGB", (200, 200))
    worn = Sprite(sheet(tmp_path), "sunglasses").put_on(photo, face())
    left, top, right, bottom = changed(photo, worn)
    assert right - left == pytest.approx(2.3 * 40, abs=1)
    assert (right - left) / (bottom - top) == pytest.approx(5, rel=0.06)
    assert (left + right) / 2 == pytest.approx(100, abs=1)
    assert top < 100 < bottom
    assert worn.getpixel((100, 100)) == RED
    assert photo.getpixel((100, 100)) == (0, 0, 0)


def test_a_hat_is_above_the_eyes(tmp_path):
    photo = Image.new("RGB", (200, 200))
    worn = Sprite(sheet(tmp_path, box=(50, 10, 149, 89)), "hat").put_on(photo, face())
    left, top, right, bottom = changed(photo, worn)
    assert bottom < 100
    assert bottom > 60
    assert right - left > 2.5 * 40
    assert top < 20


def test_it_turns_with_the_eyes(tmp_path):
    photo = Image.new("RGB", (200, 200))
    sprite = Sprite(sheet(tmp_path), "sunglasses")
    worn = sprite.put_on(photo, face((86.0, 86.0), (114.0, 114.0)))  # the right eye of the picture is lower
    for offset in (-25, 0, 25):
        assert worn.getpixel((100 + offset, 100 + offset))[0] > 150
        assert offset == 0 or worn.getpixel((100 + offset, 100 - offset))[0] < 60
    upright = sprite.put_on(photo, face((100.0, 80.0), (100.0, 120.0)))
    left, top, right, bottom = changed(photo, upright)
    assert bottom - top == pytest.approx(92, abs=2)
    assert right - left < 25


def test_without_eyes_the_box_says_where(tmp_path):
    photo = Image.new("RGB", (200, 200))
    worn = Sprite(sheet(tmp_path), "sunglasses").put_on(photo, Face((60.0, 60.0, 80.0, 80.0), 5.0))
    left, top, right, bottom = changed(photo, worn)
    assert (left + right) / 2 == pytest.approx(100, abs=1)
    assert 0.75 * 80 < right - left < 1.05 * 80
    assert 60 < top < bottom < 110


@pytest.mark.parametrize("shift", [(-95, 0), (95, 0), (0, -98), (0, 98)])
def test_it_is_clipped_at_the_border_and_not_left_out(tmp_path, shift):
    sprite = Sprite(sheet(tmp_path), "sunglasses")
    large = Image.new("RGB", (600, 600))
    eyes = [(x + shift[0], y + shift[1]) for x, y in ((80, 100), (120, 100))]
    photo = Image.new("RGB", (200, 200))
    worn = sprite.put_on(photo, face(*eyes))
    whole = sprite.put_on(large, face(*[(x + 200, y + 200) for x, y in eyes]))
    assert changed(photo, worn)
    assert np.array_equal(np.asarray(worn), np.asarray(whole.crop((200, 200, 400, 400))))


def test_a_white_surround_is_taken_for_transparent_but_white_inside_stays(tmp_path):
    image = Image.new("RGB", (80, 60), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 10, 60, 50), RED)
    draw.ellipse((34, 24, 46, 36), (255, 255, 255))
    image.save(tmp_path / "matte.png")
    alpha = np.asarray(Sprite(tmp_path / "matte.png", "hat").image)[..., 3]
    assert alpha.shape == (41, 41)
    assert alpha[0, 0] == alpha[-1, -1] == 0
    assert alpha[20, 20] == 255


def test_edges_blended_with_white_get_their_own_colour_back(tmp_path):
    y, x = np.mgrid[:60, :60]
    alpha = np.clip(20.5 - np.hypot(x - 30, y - 30), 0, 1)[..., None]
    own = np.broadcast_to(np.array([30.0, 40.0, 90.0]), (60, 60, 3))
    for name, colour in (("blended", alpha * own + (1 - alpha) * 255), ("clean", own)):
        pixels = np.concatenate([colour, alpha * 255], -1).round().astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        result = np.asarray(Sprite(tmp_path / f"{name}.png", "hat").image).astype(float)
        edge = (result[..., 3] > 60) & (result[..., 3] < 240)
        assert edge.sum() > 20
        assert np.abs(result[edge][:, :3] - (30, 40, 90)).max() < 5, name


def test_an_invisible_or_missing_sprite_is_an_error(tmp_path):
    Image.new("RGBA", (10, 10), (9, 9, 9, 0)).save(tmp_path / "none.png")
    with pytest.raises(InputError, match=r"none\.png: nothing of it is visible"):
        Sprite(tmp_path / "none.png", "hat")
    with pytest.raises(InputError, match="no such file"):
        Sprite(tmp_path / "missing.png", "hat")


@pytest.mark.parametrize("kind", ["hat", "sunglasses"])
def test_drawn_ones(kind):
    sprite = Sprite("drawn", kind)
    photo = Image.new("RGB", (200, 200), (255, 255, 255))
    assert changed(photo, sprite.put_on(photo, face()))
    assert sprite.name == Sprite("drawn", kind).name
