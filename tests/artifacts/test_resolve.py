import subprocess
import sys

import pytest

from lit_insert import pocket
from lit_insert.artifacts.folder import replace_model_folder
from lit_insert.artifacts.resolve import resolve_model
from lit_insert.errors import InputError


@pytest.fixture
def run(tmp_path):
    """A run folder with an export and two checkpoints."""
    folder = tmp_path / "runs" / "a"
    (folder / "export").mkdir(parents=True)
    (folder / "export" / "model_index.json").write_text("{}")
    (folder / "checkpoints").mkdir()
    for name in ("best.ckpt", "last.ckpt"):
        (folder / "checkpoints" / name).write_bytes(b"x")
    return folder


def test_run_folder_prefers_its_export(run):
    found = resolve_model(run)
    assert (found.kind, found.path) == ("folder", run / "export")
    assert resolve_model(run / "export").path == run / "export"


def test_run_folder_without_export_takes_the_last_checkpoint(run):
    (run / "export" / "model_index.json").unlink()
    found = resolve_model(run)
    assert (found.kind, found.path) == ("checkpoint", run / "checkpoints" / "last.ckpt")
    (run / "checkpoints" / "last.ckpt").unlink()
    assert resolve_model(run).path.name == "best.ckpt"
    assert resolve_model(run / "checkpoints" / "best.ckpt").kind == "checkpoint"


def test_hub_id_and_local_folder_of_the_same_shape(run, monkeypatch):
    monkeypatch.chdir(run.parent.parent)
    assert resolve_model("runs/a").kind == "folder"
    assert resolve_model("runs/b").kind == "hub"


def test_unknown_names_say_what_was_looked_for(tmp_path, run):
    (tmp_path / "w.safetensors").write_bytes(b"x")
    (tmp_path / "bare").mkdir()
    for name, message in (
        (tmp_path / "absent", "no such folder here"),
        (tmp_path / "absent.ckpt", "no such file here"),
        ("runs/absent.ckpt", "no such file here"),
        (tmp_path / "w.safetensors", "a file that is no .ckpt"),
        (tmp_path / "bare", "looked for model_index.json, or config.json with .* and for checkpoints"),
        ("pockett", "did you mean 'pocket'"),
        ("pocket:nothing", "nothing"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            resolve_model(name)
        assert "\n" not in str(caught.value)


def test_pocket_name(tmp_path, monkeypatch):
    monkeypatch.setattr(pocket, "path", lambda name: tmp_path / name)
    assert resolve_model("pocket").path == tmp_path / "insert"
    assert resolve_model("pocket:other").path == tmp_path / "other"
    assert resolve_model("pocket", default_pocket="mask").path == tmp_path / "mask"
    assert resolve_model("pocket:other", default_pocket="mask").path == tmp_path / "other"


def test_a_single_model_is_an_exported_folder(run):
    export = run / "export"
    (export / "model_index.json").rename(export / "config.json")
    assert resolve_model(run).kind == "checkpoint"  # a config alone is no model
    (export / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    for name in (run, export):
        found = resolve_model(name)
        assert (found.kind, found.path) == ("folder", export)


def test_resolving_does_not_import_torch():
    code = "import sys; from lit_insert.artifacts.resolve import resolve_model; resolve_model('a/b'); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_replacing_a_model_keeps_the_card_and_drops_old_parts(tmp_path):
    target = tmp_path / "m"
    (target / "vae").mkdir(parents=True)
    (target / "vae" / "config.json").write_text("{}")
    (target / "model_index.json").write_text("old")
    (target / "README.md").write_text("card")
    with replace_model_folder(target) as temporary:
        (temporary / "model_index.json").write_text("new")
    assert sorted(p.name for p in target.iterdir()) == ["README.md", "model_index.json"]
    assert (target / "model_index.json").read_text() == "new"


def test_replacing_a_single_model_drops_its_old_weights(tmp_path):
    for name in ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "README.md"):
        (tmp_path / name).write_text("old")
    with replace_model_folder(tmp_path) as temporary:
        (temporary / "config.json").write_text("new")
        (temporary / "model.safetensors").write_text("new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (tmp_path / "config.json").read_text() == "new"


def test_replacing_refuses_a_folder_of_other_things(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")

    def write(path):
        with replace_model_folder(path) as temporary:
            (temporary / "model_index.json").write_text("new")

    with pytest.raises(InputError, match="has other things in it"):
        write(tmp_path)
    with pytest.raises(InputError, match="a file is in the way"):
        write(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert (tmp_path / "empty" / "model_index.json").exists()
