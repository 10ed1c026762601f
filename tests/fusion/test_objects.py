import json

import pytest

from lit_insert.errors import InputError
from lit_insert.fusion.objects import FusionObject, FusionSettings, read_objects

ORIGINAL = {  # every key of the original program
    "path": "butterfly.png",
    "text": "butterfly",
    "target_area": "bottom_left",
    "location_prompt": "on the flower",
    "base_scale": 0.8,
    "use_smart": True,
    "z_order": 1,
    "alpha": 0.9,
    "use_adaptive_scale": True,
    "gamma": 0.4,
    "eta": 0.8,
    "min_scale": 0.3,
    "max_scale": 0.7,
    "candidate_scales": [0.2, 0.3],
    "num_candidates": 16,
    "jitter": 0.18,
    "lambda_overlap": 0.4,
    "scene_prompt": "flowers",
    "control_prompt": "a butterfly",
}


def test_every_key_of_the_original_is_read(tmp_path):
    (tmp_path / "butterfly.png").touch()
    (tmp_path / "objects.json").write_text(json.dumps([ORIGINAL, {**ORIGINAL, "seed": 3, "location_prompt": None}]))
    first, second = read_objects(tmp_path / "objects.json")
    assert first.path == str(tmp_path / "butterfly.png"), "beside the file"
    for key, value in ORIGINAL.items():
        if key != "path":
            assert getattr(first, key) == (tuple(value) if isinstance(value, list) else value)
    assert (second.seed, second.phrase) == (3, None)
    assert FusionObject.from_dict({k: v for k, v in first.as_dict().items() if v is not None}, "again") == first


def test_defaults():
    plain = FusionObject("a.png", "a")
    assert (plain.area, plain.phrase, plain.base_scale) == ("center", None, 1.0)
    assert FusionObject("a.png", "a", location_prompt="left").area == "anywhere"
    assert FusionObject("a.png", "a", location_prompt="left", target_area="top").area == "top"
    ignored = FusionObject("a.png", "a", location_prompt="left", use_smart=False)
    assert (ignored.area, ignored.phrase) == ("center", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": None}, "object 0: the key 'path' is missing"),
        ({"pathh": "x"}, "no key is called 'pathh'"),
        ({"target_area": "middle"}, "target_area 'middle': unknown; give one of"),
        ({"base_scale": "big"}, "base_scale: expected a number, got 'big'"),
        ({"base_scale": 0}, "base_scale is 0; give 0.01 to 4"),
        ({"use_smart": 1}, "use_smart: expected true or false"),
        ({"z_order": 1.5}, "z_order: expected a whole number"),
        ({"seed": "a"}, "seed: expected a whole number"),
        ({"candidate_scales": [0.1, "a"]}, "candidate_scales: expected a list of numbers"),
        ({"min_scale": 0.9}, "min_scale 0.9 is over max_scale"),
        ({"num_candidates": 0}, "num_candidates is 0"),
        ({"text": ["a"]}, "text: expected a text"),
        ({"alpha": float("nan")}, "alpha is nan"),
    ],
)
def test_mistakes_are_named(tmp_path, change, message):
    path = tmp_path / "objects.json"
    path.write_text(json.dumps([{**ORIGINAL, **change}]))
    with pytest.raises(InputError, match=message):
        read_objects(path)


def test_broken_files_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_objects(tmp_path / "none.json")
    for text, message in (("[", "not readable JSON"), ("[]", "list of objects"), ("[3]", "object with keys")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_objects(tmp_path / "x.json")


def test_settings_are_checked():
    for change, message in (
        ({"overlap_mode": "both"}, "overlap_mode 'both'"),
        ({"scaling": "m3"}, "scaling 'm3'"),
        ({"backdrop": "white"}, "backdrop 'white'"),
        ({"global_scale": 9.0}, "global_scale is 9"),
        ({"threshold": 1.0}, "threshold is 1"),
        ({"feather": -1}, "feather is -1"),
    ):
        with pytest.raises(InputError, match=message):
            FusionSettings(**change)
