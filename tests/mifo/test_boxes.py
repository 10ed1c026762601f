import json

import numpy as np
import pytest
import torch

from lit_insert.errors import InputError
from lit_insert.mifo.boxes import (
    Box,
    check_subjects,
    draw_layout,
    make_boxes,
    parse_box,
    placeholders,
    rasterise,
    read_boxes,
)

PROMPT = "a photo of <asset0> and <asset1> with <asset0>"


def test_boxes_come_in_several_forms(tmp_path):
    wanted = [Box("<asset0>", 0, 0.25, 0.5, 1), Box("<asset1>", 0.5, 0.25, 1, 1)]
    corners = [list(b.corners) for b in wanted]
    named = dict(zip(["<asset0>", "<asset1>"], corners, strict=True))
    listed = [{"subject": k, "box": v} for k, v in named.items()]
    for content in (named, listed, corners):
        (tmp_path / "b.json").write_text(json.dumps(content))
        assert read_boxes(tmp_path / "b.json", PROMPT) == wanted
    (tmp_path / "b.yaml").write_text("<asset0>: [0, .25, .5, 1]\n'<asset1>': [.5, .25, 1, 1]\n")
    assert read_boxes(tmp_path / "b.yaml") == wanted
    assert make_boxes(wanted) == wanted
    assert parse_box("<asset0>:0,0.25,.5,1") == wanted[0]
    assert parse_box("red circle: 0.1, 0.2, 0.3, 0.4") == Box("red circle", 0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<asset0>:0.1,0.3,1.5,0.9", "box of <asset0>: 0.1,0.3,1.5,0.9 is outside the picture"),
        ("<asset0>:nan,0.3,0.5,0.9", "outside the picture"),
        ("<asset0>:0.5,0.3,0.5,0.9", "is empty; give x0,y0,x1,y1 with x0 < x1"),
        ("<asset0>:0.1,0.9,0.5,0.3", "is empty"),
        ("<asset0>:0.1,0.9,0.5", "not four numbers"),
        ("<asset0>:a,b,c,d", "not four numbers"),
        ("0.1,0.2,0.3,0.4", "subject and x0,y0,x1,y1"),
    ],
)
def test_mistakes_in_a_box_are_named(text, message):
    with pytest.raises(InputError, match=message):
        parse_box(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[0, 0, 1, 1]]", r"1 boxes for 2 tokens in the prompt \(<asset0>, <asset1>\)"),
        ("<asset0>: 3", "3 is not four numbers"),
        ("- {subject: a}", "should have subject and box"),
        ("word", "give a mapping"),
        ("a: [", "neither JSON nor YAML"),
    ],
)
def test_mistakes_in_a_file_are_named(content, message, tmp_path):
    (tmp_path / "b.yaml").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_boxes(tmp_path / "b.yaml", PROMPT)
    assert "b.yaml" in str(caught.value)
    with pytest.raises(InputError, match=r"none.json: No such file"):
        read_boxes(tmp_path / "none.json")


def test_every_placeholder_needs_a_box():
    assert placeholders(PROMPT) == ["<asset0>", "<asset1>"]
    boxes = [Box("<asset0>", 0, 0, 1, 1)]
    check_subjects(boxes, "only <asset0>")
    with pytest.raises(InputError, match="has <asset1>, for which there is no box; the boxes are for <asset0>"):
        check_subjects(boxes, PROMPT)


def test_cells_are_rounded_edges():
    boxes = [Box("a", 0.1, 0.25, 0.6, 1), Box("b", 0.3, 0.3, 0.35, 0.35)]
    mask = rasterise(boxes, 8, 10)
    wanted = torch.zeros(2, 8, 10, dtype=torch.bool)
    wanted[0, 2:8, 1:6] = True
    wanted[1, 2, 3] = True  # too small for any cell's edges: the one that has its middle
    assert torch.equal(mask, wanted)
    assert rasterise([Box("corner", 0.99, 0.99, 1, 1)], 4, 4)[0, 3, 3]


def test_layout_is_drawn_where_the_boxes_are():
    boxes = [Box("left", 0, 0, 0.5, 1), Box("right", 0.5, 0, 1, 1)]
    pixels = np.asarray(draw_layout(boxes, (80, 40))).astype(int)
    assert pixels.shape == (40, 80, 3)
    assert not np.array_equal(pixels[30, 20], pixels[30, 60])
    from PIL import Image

    over = np.asarray(draw_layout([Box("a", 0.25, 0.25, 0.75, 0.75)], (64, 64), Image.new("RGB", (8, 8), "white")))
    assert (over[40, 40] == 255).all()
    assert (over[0] == 255).all()
    assert not (over == 255).all()
