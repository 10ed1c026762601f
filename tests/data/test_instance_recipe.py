import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tiny_instances import write_instances

from lit_insert.data.instance_folder import read_instances
from lit_insert.data.instance_recipe import draw_scene, painted_masks, parse_thing, split_mask
from lit_insert.errors import InputError

SCRIPT = Path(__file__).parents[2] / "data" / "prepare_instances.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("prepare_instances", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_scene_has_what_was_asked_for_where_it_was_asked_for(script, tmp_path, capsys):
    out = tmp_path / "look_alikes"
    words = ["striped red circle", "a checked red circle"]
    assert script.main(["--scene", *words, "--places", "0", "3", "--out", str(out)]) == 0
    assert "2 instances" in capsys.readouterr().out
    found = read_instances(out)
    assert found.image.size == (32, 32)
    centres = [np.argwhere(m).mean(0) / 32 for m in found.masks]
    assert np.allclose(centres, [[0.26, 0.26], [0.74, 0.74]], atol=0.06)
    page = (out / "index.html").read_text()
    assert "asset1" in page
    assert not page.count("http")
    again, _ = draw_scene([parse_thing(w) for w in words], [0, 3])
    assert again.tobytes() == found.image.tobytes()
    assert script.main(["--check", str(out)]) == 0


def test_masks_come_from_files_a_painting_or_the_parts_of_a_mask(script, tmp_path):
    given = write_instances(tmp_path / "given")
    picture = str(given / "img.png")
    masks = [str(given / f"mask{i}.png") for i in (1, 0)]
    assert script.main(["--image", picture, "--masks", *masks, "--out", str(tmp_path / "a")]) == 0
    original = read_instances(given).masks
    assert np.array_equal(read_instances(tmp_path / "a").masks, original[::-1])
    painting = Image.new("RGBA", (40, 32), (0, 0, 0, 0))
    draw = ImageDraw.Draw(painting)
    draw.rectangle((2, 2, 13, 13), (250, 20, 20, 255))
    draw.rectangle((20, 12, 35, 27), (20, 20, 250, 255))
    painting.save(tmp_path / "paint.png")
    found = painted_masks(painting)
    assert [m.sum() for m in found] == [256, 144]
    assert (
        script.main(["--image", picture, "--painted", str(tmp_path / "paint.png"), "--out", str(tmp_path / "b")]) == 0
    )
    assert np.array_equal(read_instances(tmp_path / "b").masks, original[::-1])
    assert np.array_equal(split_mask(original.max(0)), original[::-1])
    small = ["--side", "20", "--out", str(tmp_path / "c")]
    assert script.main(["--image", picture, "--masks", *masks, *small]) == 0
    assert read_instances(tmp_path / "c").image.size == (20, 16)


def test_mistakes_are_told_in_one_line(script, tmp_path, capsys):
    given = write_instances(tmp_path / "given")
    picture = str(given / "img.png")

    def fails(*args):
        assert script.main([*args, "--out", str(tmp_path / "out")]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert not (tmp_path / "out").exists()
        return lines[0]

    Image.new("RGB", (40, 32)).save(tmp_path / "black.png")
    assert "nothing is painted" in fails("--image", picture, "--painted", str(tmp_path / "black.png"))
    Image.new("L", (8, 8), 255).save(tmp_path / "small.png")
    said = fails("--image", picture, "--masks", str(tmp_path / "small.png"))
    assert f"{tmp_path / 'out'}/mask0.png: is 8x8 pixels, the picture 40x32" in said
    assert "'pink' is no shape" in fails("--scene", "pink circle")
    assert "its own place" in fails("--scene", "red circle", "blue ring", "--places", "1", "1")
    with pytest.raises(InputError, match="nothing was found"):
        split_mask(np.zeros((8, 8)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    assert script.main(["--scene", "red circle", "--out", str(tmp_path / "full")]) == 2
    assert "is not empty" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.parse(["--scene", "red circle", "--masks", "a.png", "--out", "x"])
