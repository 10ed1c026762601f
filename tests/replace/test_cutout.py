import numpy as np
import pytest
from PIL import Image
from replace_samples import figure, sticker

from lit_insert.errors import InputError
from lit_insert.replace.cutout import cut_out, has_alpha, place, render
from lit_insert.replace.region import Region, box_of


def person(size=(100, 120), box=(40, 20, 60, 80)):
    mask = np.zeros((size[1], size[0]), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def visible(layer):
    return box_of(layer[..., 3] > 127)


def test_alpha_is_seen():
    assert has_alpha(sticker())
    assert not has_alpha(sticker().convert("RGB"))
    assert not has_alpha(Image.new("RGBA", (4, 4), "red"))


def test_feet_meet_feet_at_the_same_height():
    thing, mask = cut_out(sticker((30, 50))), person()
    left, top, right, bottom = visible(render(thing, place(thing, mask), Region(0, 0, 120, (100, 120))))
    assert abs(bottom - 80) <= 3
    assert abs((bottom - top) - 60) <= 6
    assert abs((left + right) / 2 - 50) <= 1


def test_heads_meet_heads():
    thing = cut_out(sticker((30, 50)))
    box = place(thing, person(), align="head", scale=0.5)
    assert box[1] == 20
    assert box[3] - box[1] == 30


def test_by_width():
    thing = cut_out(sticker((30, 50)))
    box = place(thing, person(), fit="width")
    assert box[2] - box[0] == 20


def test_a_whole_figure_for_a_portrait_goes_on_below_the_photo():
    mask = person(box=(20, 40, 80, 120))  # ends at the photo's lower border
    thing = cut_out(sticker((30, 110)))
    box = place(thing, mask)
    assert box[1] == 40
    assert box[2] - box[0] == 60
    assert box[3] > 120
    by_height = place(thing, mask, fit="height")
    assert (by_height[1], by_height[3]) == (40, 120)


def test_a_figure_whose_feet_are_cut_off_is_still_a_figure():
    picture = Image.new("RGBA", (40, 120))
    picture.paste((0, 0, 255, 255), (5, 10, 35, 120))
    box = place(cut_out(picture), person(box=(20, 40, 80, 120)))
    assert box[1] == 40
    assert box[2] - box[0] == 60


def test_a_portrait_for_a_portrait_keeps_the_height():
    picture = Image.new("RGBA", (40, 60))
    picture.paste((0, 0, 255, 255), (5, 20, 35, 60))
    thing = cut_out(picture)
    assert thing.cut_below
    box = place(thing, person(box=(20, 40, 80, 120)))
    assert box[3] - box[1] == 80


def test_the_centre_of_mass_counts_not_the_box():
    picture = Image.new("RGBA", (60, 40))
    picture.paste((0, 0, 255, 255), (0, 0, 20, 40))
    picture.paste((0, 0, 255, 255), (20, 18, 60, 20))  # a thin arm
    thing = cut_out(picture)
    left, _, right, _ = place(thing, person())
    assert (left + right) / 2 > 60  # the body stands at column 50, the arm reaches out to the right


def test_a_mask_cuts_without_the_old_background():
    photo, mask = figure(box=(20, 10, 70, 70))
    where = np.asarray(mask) > 127
    thing = cut_out(photo, where)
    assert thing.hard
    inside = thing.pixels[..., 3] > 0
    assert np.abs(thing.pixels[inside][:, :3].astype(int) - (220, 20, 30)).max() == 0
    assert (
        np.abs(thing.pixels[~inside][:, :3].astype(int) - (220, 20, 30)).max() == 0
    )  # nothing to bleed in when scaled


def test_the_edge_of_a_mask_is_softened_inwards():
    photo, mask = figure((256, 256), (40, 40, 200, 220))
    thing = cut_out(photo, np.asarray(mask) > 127)
    layer = render(
        thing, (40, 40, 40 + thing.pixels.shape[1], 40 + thing.pixels.shape[0]), Region(0, 0, 256, (256, 256))
    )
    alpha = layer[..., 3]
    assert ((alpha > 0) & (alpha < 255)).any()
    grown = np.zeros((256, 256), bool)
    grown[40:-2, 40:-2] = True
    assert not alpha[~grown].any()


def test_soft_alpha_stays_as_given():
    picture = sticker((30, 50))
    alpha = np.tile(np.linspace(0, 255, 30).astype(np.uint8), (50, 1))
    picture.putalpha(Image.fromarray(alpha))
    thing = cut_out(picture)
    height, width = thing.pixels.shape[:2]
    layer = render(thing, (0, 0, width, height), Region(0, 0, 64, (64, 64)))
    assert np.array_equal(layer[:height, :width, 3], thing.pixels[..., 3])


def test_what_lies_beyond_the_canvas_is_left_out():
    thing = cut_out(sticker())
    layer = render(thing, (-20, -30, 10, 20), Region(0, 0, 16, (16, 16)))
    assert layer.shape == (16, 16, 4)
    assert layer[..., 3].any()


def test_nothing_visible_is_an_error():
    with pytest.raises(InputError, match="ghost: nothing in it is visible"):
        cut_out(Image.new("RGBA", (8, 8)), name="ghost")
