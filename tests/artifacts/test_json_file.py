import json

import pytest

from lit_insert.artifacts.json_file import forget_paths, read_object, write_object
from lit_insert.errors import InputError


def test_objects_come_back(tmp_path):
    write_object(tmp_path / "a.json", {"name": "ü", "n": [1, None]})
    assert read_object(tmp_path / "a.json") == {"name": "ü", "n": [1, None]}


@pytest.mark.parametrize(("text", "why"), [("{", "missing or broken"), ("[1]", "must be a JSON object")])
def test_other_files_are_refused_by_name(tmp_path, text, why):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=rf"a\.json: {why}"):
        read_object(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"b\.json: missing"):
        read_object(tmp_path / "b.json")


def test_paths_of_the_machine_are_forgotten(tmp_path):
    (tmp_path / "vae").mkdir()
    write_object(tmp_path / "vae" / "config.json", {"_name_or_path": "/home/me/vae", "channels": 4})
    write_object(tmp_path / "config.json", {"channels": 4})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("a = 1")
    before = (tmp_path / "config.json").read_bytes()
    forget_paths(tmp_path)
    assert json.loads((tmp_path / "vae" / "config.json").read_text()) == {"channels": 4}
    assert (tmp_path / "config.json").read_bytes() == before
    assert (tmp_path / "other" / "config.json").read_text() == "a = 1"
