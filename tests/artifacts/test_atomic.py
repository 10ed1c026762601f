import os
import stat

import pytest

from lit_insert.artifacts.atomic import atomic_file, atomic_folder


def test_file_appears_whole_with_ordinary_permissions(tmp_path):
    target = tmp_path / "a" / "b.txt"
    with atomic_file(target, durable=True) as temporary:
        assert temporary.suffix == ".txt"
        assert temporary.parent == target.parent
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_leaves_the_old_file_and_no_litter(tmp_path, stop):
    target = tmp_path / "b.txt"
    target.write_text("old")

    def write():
        with atomic_file(target) as temporary:
            temporary.write_text("half")
            raise stop

    with pytest.raises(type(stop)):
        write()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["b.txt"]


def test_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale").write_text("old")
    with atomic_folder(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "fresh").write_text("new")
        (temporary / "sub" / "fresh").chmod(0o600)
        assert (target / "stale").exists()
    assert (target / "sub" / "fresh").read_text() == "new"
    assert not (target / "stale").exists()
    (tmp_path / "plain").touch()
    assert (target / "sub" / "fresh").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "plain").unlink()
    assert os.listdir(tmp_path) == ["model"]


def test_folder_failure_keeps_the_old_one(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("old")

    def write():
        with atomic_folder(target) as temporary:
            (temporary / "weights").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write()
    assert (target / "weights").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


def test_folder_comes_back_if_the_last_rename_fails(tmp_path, monkeypatch):
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("old")
    real = os.replace

    def fail_on_new(source, destination):
        if str(source).endswith(".new"):
            raise OSError(5, "Input/output error")
        real(source, destination)

    monkeypatch.setattr(os, "replace", fail_on_new)

    def write():
        with atomic_folder(target) as temporary:
            (temporary / "weights").write_text("new")

    with pytest.raises(OSError, match="Input/output"):
        write()
    assert (target / "weights").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


def test_folder_refuses_a_file(tmp_path):
    (tmp_path / "model").write_text("a file")

    def write():
        with atomic_folder(tmp_path / "model"):
            pass

    with pytest.raises(NotADirectoryError, match="is a file"):
        write()
