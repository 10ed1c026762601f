import numpy as np
import pytest

from lit_insert.fusion.relations import Location, beside, parse_location


@pytest.mark.parametrize(
    ("phrase", "location"),
    [
        ("bottom left", Location("bottom_left")),
        ("top right", Location("top_right")),
        ("top", Location("top")),
        ("to the top left", Location("top_left")),
        ("bottom_right", Location("bottom_right")),
        ("the ontop", Location(None, "on", "the ontop")),
        ("in the upper right corner", Location("top_right")),
        ("On the left side of the picture", Location("left")),
        ("at the top", Location("top")),
        ("in the middle", Location("center")),
        ("center", Location("center")),
        ("right of the blue ring", Location(None, "right", "the blue ring")),
        ("to the left of a red circle", Location(None, "left", "a red circle")),
        ("on the right of the tree", Location(None, "right", "the tree")),
        ("just above the table", Location(None, "above", "the table")),
        ("under the bridge", Location(None, "below", "the bridge")),
        ("next to the cup", Location(None, "near", "the cup")),
        ("on the flower", Location(None, "on", "the flower")),
        ("on the outer petals of the flower", Location(None, "on", "the outer petals of the flower")),
        ("on top of the box", Location(None, "on", "the box")),
        ("flower", Location(None, "on", "flower")),
        ("on the horizon", Location(None, "on", "the horizon")),
        ("the left shoe", Location(None, "on", "the left shoe")),
    ],
)
def test_phrases(phrase, location):
    assert parse_location(phrase) == location


@pytest.mark.parametrize(
    ("relation", "step"), [("right", (0, 1)), ("left", (0, -1)), ("above", (-1, 0)), ("below", (1, 0))]
)
def test_sides(relation, step):
    heat = np.zeros((40, 60), np.float32)
    heat[15:25, 25:35] = 0.8
    field = beside(heat, relation)
    assert field.max() == pytest.approx(0.8)
    y, x = np.unravel_index(field.argmax(), field.shape)
    assert abs(y - (19.5 + 5.5 * step[0])) <= 1.5
    assert abs(x - (29.5 + 5.5 * step[1])) <= 1.5
    assert not field[heat > 0].any()
    other = field[:, :25] if relation == "right" else field[:, 35:] if relation == "left" else None
    assert other is None or not other.any()


def test_on_and_near_and_nothing():
    heat = np.zeros((20, 20), np.float32)
    heat[8:12, 8:12] = 1
    assert beside(heat, "on") is heat
    assert beside(heat, None) is heat
    near = beside(heat, "near")
    assert not near[heat > 0].any()
    assert near[7, 10] == near.max() == near[12, 9]
    assert not beside(np.zeros((4, 4), np.float32), "right").any()
    heat[:] = 1
    assert not beside(heat, "right").any(), "nothing is right of the whole picture"
