import argparse
import math

import pytest
from scripts import load

from lit_insert.data.instance_folder import read_instances


@pytest.fixture(scope="module")
def script():
    return load("mifo_modes")


def test_scenes_have_as_many_instances_as_they_name_and_are_drawn_once(script, tmp_path):
    args = argparse.Namespace(out=tmp_path)
    for scene, things in script.SCENES.items():
        folder = script.scene_folder(args, scene)
        assert len(read_instances(folder).masks) == len(things)
        written = (folder / "img.png").stat().st_mtime_ns
        assert script.scene_folder(args, scene) == folder
        assert (folder / "img.png").stat().st_mtime_ns == written
    look_alike = [s for s, things in script.SCENES.items() if len({t.split()[-2:][0] for t in things}) == 1]
    assert len(look_alike) >= 3


def test_a_table_has_means_and_standard_errors(script):
    rows = [{"in_frac": 0.2, "margin": math.nan}, {"in_frac": 0.4, "margin": 0.1}, {"in_frac": 0.6, "margin": 0.3}]
    table = script.summary(rows)
    assert table["in_frac"] == pytest.approx([0.4, 0.2 / math.sqrt(3)])
    assert table["margin"] == pytest.approx([0.2, 0.1])


def test_boxes_stay_in_the_picture(script):
    for place in range(4):
        x0, y0, x1, y1 = script.box_of(place)
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
