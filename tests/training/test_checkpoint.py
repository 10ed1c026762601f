import errno
import os
import pickle
import resource
import subprocess
import sys

import pytest
import torch
from process import ROOT, environment
from runner import fit, toy
from toy import ToyModule

from lit_insert.errors import InputError
from lit_insert.training.checkpoint import RunCheckpoint, read_checkpoint
from lit_insert.training.ema import EMA


@pytest.fixture
def last(tmp_path):
    """A checkpoint of a short run."""
    fit(tmp_path, EMA(0.9), RunCheckpoint())
    return tmp_path / "checkpoints/last.ckpt"


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert str(word) in text


def test_holds_what_trains_as_plain_data(last):
    saved = torch.load(last, weights_only=True)
    assert {k.split(".")[0] for k in saved["state_dict"]} == {"net"}
    assert any("running_mean" in k for k in saved["state_dict"])
    assert saved["hyper_parameters"]["width"] == 8
    about = saved["lit_insert"]
    assert about["base_model"] == "toy/base"
    assert about["class"] == "toy.ToyModule"
    assert about["config_hash"] == toy().config_hash() != toy(width=4).config_hash()
    assert sorted(p.name for p in last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_best_is_the_best(tmp_path):
    class Scripted(ToyModule):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", [3.0, 1.0, 2.0, float("nan")][self.current_epoch])

    callback = RunCheckpoint()
    fit(tmp_path, callback, model=Scripted(), max_steps=24)
    assert torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)["global_step"] == 12
    assert callback.best_score == 1.0
    with pytest.raises(InputError, match="'val/iou' is not logged; there is: lr, train/"):
        fit(tmp_path, RunCheckpoint(monitor="val/iou"))


def test_load_refuses_what_does_not_fit(tmp_path, last):
    with pytest.raises(InputError) as error:
        fit(tmp_path, RunCheckpoint(), model=toy(width=4), ckpt=last)
    one_line(error, "net.0.weight (8, 8) instead of (4, 4)")
    saved = torch.load(last, weights_only=True)
    del saved["state_dict"]["net.4.bias"]
    torch.save(saved, last)
    with pytest.raises(InputError) as error:
        fit(tmp_path, RunCheckpoint(), ckpt=last)
    one_line(error, "lacks weights: net.4.bias")


@pytest.mark.parametrize("kept", [0, 100, 0.5, -1])
def test_truncated_file_is_named(last, kept):
    whole = last.read_bytes()
    last.write_bytes(whole[: int(len(whole) * kept) if kept == 0.5 else kept])
    for mmap in (False, True):
        with pytest.raises(InputError) as error:
            read_checkpoint(last, mmap=mmap)
        one_line(error, last, "truncated or damaged")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


@pytest.mark.parametrize("bare", [False, True])
def test_code_is_not_run(tmp_path, monkeypatch, bare):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.ckpt"
    if bare:
        path.write_bytes(pickle.dumps({"state_dict": Evil()}))
    else:
        torch.save({"state_dict": {}, "extra": Evil()}, path)
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    one_line(error, path, "holds code")
    assert not (tmp_path / "hacked").exists()


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "none.ckpt")
    torch.save({"a": 1}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="has no state_dict"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    real = torch.save

    def full(checkpoint, path, *args, **kwargs):
        if checkpoint["global_step"] == 4:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(checkpoint, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError) as error:
        fit(tmp_path, RunCheckpoint(every_n_steps=2, monitor=None))
    one_line(error, "cannot write", "No space left on device", "the previous last.ckpt is intact")
    assert os.listdir(tmp_path / "checkpoints") == ["last.ckpt"]
    assert read_checkpoint(tmp_path / "checkpoints/last.ckpt")["global_step"] == 2


def test_a_file_size_limit_of_the_system_keeps_it_too(tmp_path, last):
    """The same with a limit that the system enforces, in a process of its own."""
    size = last.stat().st_size
    code = (
        "import sys; sys.path.insert(0, 'tests/training')\n"
        "from pathlib import Path; from runner import fit, toy\n"
        "from lit_insert.training.checkpoint import RunCheckpoint\n"
        f"fit(Path({str(tmp_path)!r}), RunCheckpoint(), max_steps=9, ckpt={str(last)!r})\n"
    )

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    before = last.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment() | {"PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    line = next(x for x in done.stderr.splitlines() if "InputError: cannot write" in x)
    assert "the previous last.ckpt is intact" in line
    assert last.read_bytes() == before


def test_nan_stops_before_a_checkpoint(tmp_path):
    with pytest.raises(InputError) as error:
        fit(tmp_path, RunCheckpoint(every_n_steps=1, monitor=None), model=toy(nan_at="s3"))
    one_line(error, "loss is nan at step ", "batch ids: ", "s3")
    step = int(str(error.value).split("at step ")[1].split(";")[0])
    saved = read_checkpoint(tmp_path / "checkpoints/last.ckpt")
    assert saved["global_step"] == step > 0
    assert all(v.isfinite().all() for v in saved["state_dict"].values())


def test_leftovers_of_a_kill_are_removed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/.last.abc.ckpt").write_bytes(b"half")
    fit(tmp_path, RunCheckpoint(monitor=None))
    assert os.listdir(tmp_path / "checkpoints") == ["last.ckpt"]


def test_negative_interval():
    with pytest.raises(InputError, match="every_n_steps is -1"):
        RunCheckpoint(every_n_steps=-1)
