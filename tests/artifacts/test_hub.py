from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from lit_insert.artifacts.hub import pull_model, push_dataset, push_model
from lit_insert.errors import InputError


@pytest.fixture
def exported(tmp_path):
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "README.md").write_text("card")
    save_file({"w": torch.zeros(4)}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder


def test_dry_run_lists_files_and_connects_to_nothing(exported, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **k: pytest.fail("connected"))
    plan = push_model(exported, "me/model", dry_run=True)
    assert plan.url is None
    assert plan.private
    assert sorted(plan.files) == ["README.md", "model_index.json", "unet/diffusion_pytorch_model.safetensors"]
    assert plan.files["README.md"] == 4


def test_push_uploads_what_the_dry_run_said(exported, monkeypatch):
    calls = {}

    class Api:
        def __init__(self, token):
            calls["token"] = token

        def create_repo(self, repo_id, **options):
            calls["create"] = (repo_id, options)

        def upload_folder(self, **options):
            calls["upload"] = options
            return type("Commit", (), {"commit_url": "address"})()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    (exported / ".cache").mkdir()
    (exported / ".cache" / "secret").write_text("x")
    done = push_model(exported, "me/model", private=False, message="first", token="t")
    assert done.url == "address"
    assert calls["create"] == ("me/model", {"repo_type": "model", "private": False, "exist_ok": True})
    assert calls["upload"]["allow_patterns"] == list(done.files)
    assert not any("secret" in name for name in done.files)
    assert (calls["token"], calls["upload"]["commit_message"]) == ("t", "first")


def test_push_refuses_incomplete_or_unsafe_folders(exported, tmp_path):
    def refuse(message, folder=exported, repo="me/model"):
        with pytest.raises(InputError, match=message) as caught:
            push_model(folder, repo, dry_run=True)
        assert "\n" not in str(caught.value)

    refuse("no such folder", folder=tmp_path / "absent")
    refuse("give owner/name", repo="model")
    (exported / "optimizer.ckpt").write_bytes(b"x")
    refuse(r"optimizer\.ckpt: code and pickles")
    (exported / "optimizer.ckpt").unlink()
    file = exported / "unet" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    refuse("truncated")
    file.write_bytes(whole)
    (exported / "README.md").unlink()
    refuse("model card")
    (exported / "model_index.json").unlink()
    refuse("no model_index.json")


def test_push_takes_a_single_model(tmp_path):
    (tmp_path / "README.md").write_text("card")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no model_index\.json, nor config\.json with"):
        push_model(tmp_path, "me/model", dry_run=True)
    save_file({"w": torch.zeros(4)}, tmp_path / "diffusion_pytorch_model.safetensors")
    files = push_model(tmp_path, "me/model", dry_run=True).files
    assert sorted(files) == ["README.md", "config.json", "diffusion_pytorch_model.safetensors"]


def test_dataset_push_takes_any_files(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metadata.csv").write_text("a,b\n")
    assert list(push_dataset(tmp_path, "me/data", dry_run=True).files) == ["train/metadata.csv"]
    (tmp_path / "train" / "loader.py").write_text("")
    with pytest.raises(InputError, match=r"loader\.py"):
        push_dataset(tmp_path, "me/data", dry_run=True)


def response(status):
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (lambda: errors.LocalEntryNotFoundError("offline\nmore"), "hub cannot be reached"),
        (lambda: errors.RepositoryNotFoundError("404", response=response(404)), "nor a public model"),
        (lambda: errors.GatedRepoError("403", response=response(403)), "access must be requested"),
        (lambda: errors.RevisionNotFoundError("404", response=response(404)), "no revision 'v9'"),
        (lambda: errors.HfHubHTTPError("boom\ndetails", response=response(500)), "the hub said: boom"),
    ],
)
def test_pull_problems_are_one_line(monkeypatch, problem, message):
    def fail(*args, **options):
        raise problem()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=message) as caught:
        pull_model("me/model", revision="v9")
    assert "'me/model'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pull_asks_for_no_code_and_no_pickles(monkeypatch, tmp_path):
    seen = {}

    def download(repo_id, **options):
        seen.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert pull_model("me/model", local_files_only=True) == tmp_path
    assert seen["local_files_only"]
    assert not any(p.endswith((".bin", ".py", ".ckpt", ".pt")) for p in seen["allow_patterns"])
