import json
import os
import struct
import subprocess
import sys
import zlib

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from data_samples import write_pipe, write_triplets
from fsspec.implementations.local import LocalFileSystem

from lit_insert.data import pipe_rows
from lit_insert.data.parquet_join import unit_hash
from lit_insert.data.pipe import PipeTripletDataModule
from lit_insert.errors import InputError

SMALL = {"batch_size": 4, "num_workers": 0, "size": 32, "object_size": 32, "min_side": 8, "shuffle_window": 10}


def pipe_module(root, **options):
    defaults = {"cache_dir": str(root / "cache"), "val_fraction": 0.0}
    return PipeTripletDataModule(str(root / "PIPE"), str(root / "PIPE_Masks"), **(SMALL | defaults | options))


def ids(loader):
    return [i for batch in loader for i in batch["id"]]


@pytest.mark.parametrize("streaming", [False, True])
def test_every_row_once_with_its_own_mask(tmp_path, streaming):
    keys = write_pipe(tmp_path, mask_order=np.random.default_rng(1).permutation(40))
    data = pipe_module(tmp_path, streaming=streaming)
    dataset = data.dataset("train")
    for index in range(len(dataset)):
        triplet = dataset.triplet(index)
        number = ["-".join(k) for k in keys].index(triplet.id)
        inside = np.asarray(triplet.target)[np.asarray(triplet.mask) > 250]
        assert np.abs(np.median(inside, 0) - [number, 255 - number, 60]).max() < 12
        assert triplet.instruction == (f"put in thing {number}" if number % 3 else f"add a thing {number}")
    loader = data.train_dataloader()
    first, second = ids(loader), ids(loader)
    assert sorted(first) == sorted(second) == sorted("-".join(k) for k in keys)
    assert first != second


def test_streamed_or_not_a_sample_is_the_same(pipe):
    root, _ = pipe
    one, other = (pipe_module(root, streaming=s).dataset("train") for s in (False, True))
    for index in (0, 13, 39):
        first, second = one.sample(index, 2), other.sample(index, 2)
        assert first["id"] == second["id"]
        assert all(torch.equal(first[k], second[k]) for k in ("source", "target", "object", "mask"))


def test_training_draws_among_the_instructions(pipe):
    root, _ = pipe
    dataset = pipe_module(root).dataset("train")
    assert len({dataset.sample(1, epoch)["instruction"] for epoch in range(20)}) == 2
    plain = pipe_module(root, val_fraction=0.5).dataset("val")
    assert len({plain.sample(1, epoch)["instruction"] for epoch in range(20)}) == 1


def test_splits_go_by_picture_and_the_test_split_stays(tmp_path):
    train = write_pipe(tmp_path, 60)
    write_pipe(tmp_path, 5, "test")
    data = pipe_module(tmp_path, val_fraction=0.3)
    pictures = {}
    for split in ("train", "val"):
        rows = data.dataset(split).pairs[:, 0]
        pictures[split] = {train[r][:2] for r in rows}
        assert len(rows) > 5
    assert not pictures["train"] & pictures["val"]
    assert pictures["train"] | pictures["val"] == {k[:2] for k in train}
    assert all(unit_hash(*p) < 0.3 for p in pictures["val"])
    assert len(data.dataset("test")) == 5
    assert len(pipe_module(tmp_path).dataset("val")) == 5


def test_objects_against_the_rules_are_skipped_not_broken(tmp_path, caplog):
    write_pipe(tmp_path, 20, box=(10, 10, 30, 17))
    data = pipe_module(tmp_path, min_side=8)
    with pytest.raises(InputError, match="too small a side"):
        ids(data.train_dataloader())
    loose = pipe_module(tmp_path, min_side=4)
    assert len(ids(loose.train_dataloader())) == 20


def break_rows(root, rows, content):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = next((root / "PIPE").rglob("*.parquet"))
    table = pq.read_table(path)
    cells = table["target_img"].to_pylist()
    for row in rows:
        cells[row] = {"bytes": content(cells[row]["bytes"]), "path": None}
    number = table.schema.get_field_index("target_img")
    pq.write_table(table.set_column(number, "target_img", pa.array(cells, table.schema.field(number).type)), path)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("content", [lambda b: b[: len(b) // 3], lambda b: b"", lambda b: b"GIF89a"])
def test_one_percent_of_broken_pictures_is_survived(tmp_path, content, num_workers, caplog):
    keys = write_pipe(tmp_path, 100, files=1)
    break_rows(tmp_path, [41], content)
    data = pipe_module(tmp_path, streaming=True, num_workers=num_workers)
    loader = data.train_dataloader()
    assert set(ids(loader)) == {"-".join(k) for n, k in enumerate(keys) if n != 41}
    assert ["-".join(keys[41]) in name for name in loader.broken] == [True]
    data.teardown("fit")
    assert "1 samples could not be read" in caplog.text


def test_more_broken_pictures_stop_with_the_last_name(tmp_path):
    write_pipe(tmp_path, 50, files=1)
    break_rows(tmp_path, [4, 40], lambda b: b[:50])
    with pytest.raises(InputError, match=r"^2 of 50 samples cannot be read, more than max_broken_fraction=0.02"):
        ids(pipe_module(tmp_path, streaming=True).train_dataloader())


def bomb():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_decompression_bombs_are_broken_samples(triplets, tmp_path):
    (triplets / "train/target/toy-0003.png").write_bytes(bomb())
    data = PipeTripletDataModule(str(triplets), **SMALL, max_broken_fraction=0.0)
    with pytest.raises(InputError, match=r"1 of 12 .*toy-0003.png: .*pixels"):
        ids(data.train_dataloader())
    write_pipe(tmp_path, 20, files=1)
    break_rows(tmp_path, [3], lambda b: bomb())
    with pytest.raises(InputError, match=r"1 of 20 .*pixels"):
        ids(pipe_module(tmp_path, streaming=True).train_dataloader())


def read_on(loader, batches=None):
    out = []
    for batch in loader:
        out.append(batch)
        if len(out) == batches:
            break
    return out


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(v, other[k]) if isinstance(v, torch.Tensor) else v == other[k] for k, v in one.items()
    )


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 3)])
@pytest.mark.parametrize("streaming", [False, True])
def test_resumes_bit_for_bit_on_another_number_of_workers(pipe, streaming, before, after):
    root, _ = pipe
    whole = pipe_module(root, streaming=streaming, num_workers=before).train_dataloader()
    expected = read_on(whole) + read_on(whole)
    loader = pipe_module(root, streaming=streaming, num_workers=before).train_dataloader()
    read_on(loader, 3)
    other = pipe_module(root, streaming=streaming, num_workers=after).train_dataloader()
    other.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    rest = read_on(other) + read_on(other)
    assert len(rest) == len(expected) - 3
    assert all(same(a, b) for a, b in zip(rest, expected[3:], strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_two_ranks_stream_every_row_once(pipe, monkeypatch, num_workers):
    root, keys = pipe
    seen = []
    for rank in range(2):
        monkeypatch.setattr("lit_insert.data.loading.this_rank", lambda rank=rank: (rank, 2))
        loader = pipe_module(root, streaming=True, num_workers=num_workers, batch_size=3).train_dataloader()
        assert len(loader) == 7
        seen += ids(loader)
    assert sorted(seen) == sorted("-".join(k) for k in keys)


def test_streaming_holds_few_row_groups(pipe):
    root, _ = pipe
    data = pipe_module(root, streaming=True, shuffle_window=10)
    ids(data.train_dataloader())
    held = sum(map(len, data.dataset("train").source._groups.values()))
    assert held <= 10 + 3 * 7


def test_hub_streaming_pairs_by_place_and_checks_the_keys(tmp_path, monkeypatch):
    keys = write_pipe(tmp_path)

    def files(source, split, revision):
        assert (split, revision) == ("train", "v1")
        return LocalFileSystem(), sorted(map(str, (tmp_path / source.split("/")[1]).rglob("*.parquet")))

    monkeypatch.setattr(pipe_rows, "_hub_files", files)
    options = SMALL | {"streaming": True, "revision": "v1"}
    data = PipeTripletDataModule("some/PIPE", "some/PIPE_Masks", val_fraction=0.0, **options)
    assert sorted(ids(data.train_dataloader())) == sorted("-".join(k) for k in keys)
    with pytest.raises(InputError, match="val_fraction needs the keys"):
        PipeTripletDataModule("some/PIPE", "some/PIPE_Masks", **options).train_dataloader()
    write_pipe(tmp_path, mask_order=range(39, -1, -1))
    data = PipeTripletDataModule("some/PIPE", "some/PIPE_Masks", val_fraction=0.0, **options)
    with pytest.raises(InputError, match="not in one order"):
        ids(data.train_dataloader())
    write_pipe(tmp_path, mask_order=range(30))
    data = PipeTripletDataModule("some/PIPE", "some/PIPE_Masks", val_fraction=0.0, **options)
    with pytest.raises(InputError, match="40 rows but 30 masks"):
        data.train_dataloader()


def test_a_folder_of_triplets(triplets):
    data = PipeTripletDataModule(str(triplets), **SMALL)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["source"].shape == (4, 3, 32, 32)
    assert batch["object"].shape == (4, 3, 32, 32)
    assert batch["mask"].shape == (4, 1, 32, 32)
    assert ids(data.val_dataloader()) == [f"toy-{n:04d}" for n in range(100, 104)]
    assert ids(data.predict_dataloader()) == ids(data.test_dataloader()) == ["toy-0200", "toy-0201", "toy-0202"]


def test_no_validation_folder_means_no_validation(tmp_path):
    write_triplets(tmp_path, "train", 4)
    data = PipeTripletDataModule(str(tmp_path), **SMALL)
    data.setup("fit")
    assert data.val_dataloader() == []
    with pytest.raises(InputError, match=r"test: no metadata\.csv"):
        data.setup("test")


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("nowhere", {}, "nowhere: no such folder"),
        ("./some/where", {}, "no such folder"),
        (".", {}, r"no train/metadata\.csv there"),
        ("nowhere", {"masks": "nowhere"}, "nowhere: no such folder"),
        (".", {"masks": "."}, r"no \.parquet file there"),
        (".", {"streaming": True}, "give masks too"),
        (".", {"val_fraction": 1.0}, "val_fraction is 1.0"),
        (".", {"background": "pink"}, "give keep, white or grey"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, monkeypatch, path, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        PipeTripletDataModule(path, **options).setup("fit")
    assert "\n" not in str(error.value)


def test_hyperparameters_are_plain_values(triplets):
    data = PipeTripletDataModule(str(triplets), **SMALL)
    assert all(isinstance(v, str | int | float | bool | None) for v in data.hparams.values())
    assert data.hparams["size"] == 32


def test_preparing_converts_the_splits_that_there_are(tmp_path):
    write_pipe(tmp_path, 10)
    data = pipe_module(tmp_path, val_fraction=0.4)
    data.prepare_data()
    assert list((tmp_path / "cache").rglob("*.arrow"))
    data.setup("fit")
    assert len(data.dataset("train")) + len(data.dataset("val")) == 10
    with pytest.raises(InputError, match="no parquet file of split 'test'"):
        data.setup("test")


def test_overfitting_does_not_shuffle(triplets):
    data = PipeTripletDataModule(str(triplets), **SMALL)
    module = Recorder()
    pl.Trainer(
        overfit_batches=1, max_epochs=3, logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, datamodule=data)  # fmt: skip
    assert module.seen == [[f"toy-{n:04d}" for n in range(4)]] * 3


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["id"])
        return (self.weight - batch["target"].mean()).square()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


RUN = """
import json, os, signal, sys
import lightning.pytorch as pl, torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lit_insert.data.pipe import PipeTripletDataModule

root, out, workers, stop, resume = sys.argv[1:]
torch.set_num_threads(1)

class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
    def training_step(self, batch, batch_idx):
        with open(f"{out}/{self.global_rank}.jsonl", "a") as file:
            print(json.dumps([self.global_step, batch["id"], batch["object"].double().sum().item()]), file=file)
        return (self.weight - batch["object"].mean() - batch["target"].mean()).square()
    def on_train_batch_end(self, *args):
        if self.global_step == int(stop) + 1:
            os.kill(os.getpid(), signal.SIGKILL)
    def on_train_end(self):
        torch.save(self.weight.data, f"{out}/{self.global_rank}.pt")
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)

data = PipeTripletDataModule(f"{root}/PIPE", f"{root}/PIPE_Masks", batch_size=3, num_workers=int(workers), size=32,
    object_size=32, min_side=8, val_fraction=0.0, streaming=True, shuffle_window=10)
trainer = pl.Trainer(accelerator="cpu", devices=1, num_nodes=2, strategy="ddp", max_epochs=2, logger=False,
    enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    callbacks=[ModelCheckpoint(out, save_last=True, every_n_train_steps=1, save_top_k=0)])
trainer.fit(Recorder(), datamodule=data, ckpt_path=f"{out}/last.ckpt" if int(resume) else None)
"""


def run_two_nodes(root, out, workers, stop, resume, port):
    out.mkdir(exist_ok=True)
    runs = []
    for rank in range(2):
        env = os.environ | {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": str(rank),
            "GROUP_RANK": str(rank), "RANK": str(rank), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
            "OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "1",
        }  # fmt: skip
        command = [sys.executable, "-c", RUN, str(root), str(out), str(workers), str(stop), str(int(resume))]
        runs.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    results = [run.communicate(timeout=500)[1] for run in runs]
    return [run.returncode for run in runs], results


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.timeout(600)
def test_two_killed_ranks_resume_exactly(tmp_path):
    workers = 2
    keys = write_pipe(tmp_path)
    write_pipe(tmp_path, 6, "test", files=1)
    codes, errors = run_two_nodes(tmp_path, tmp_path / "whole", workers, 99, False, free_port())
    assert codes == [0, 0], errors
    run_two_nodes(tmp_path, tmp_path / "cut", workers, 4, False, free_port())
    codes, errors = run_two_nodes(tmp_path, tmp_path / "cut", 2 - workers, 99, True, free_port())
    assert codes == [0, 0], errors
    everything = []
    for rank in range(2):
        lines = {
            name: [json.loads(line) for line in (tmp_path / name / f"{rank}.jsonl").read_text().splitlines()]
            for name in ("whole", "cut")
        }
        # A step that ran after the last checkpoint is repeated, with the same samples.
        assert {s: (i, v) for s, i, v in lines["cut"]} == {s: (i, v) for s, i, v in lines["whole"]}
        assert all([s, i, v] in lines["whole"] for s, i, v in lines["cut"])
        everything += [i for step, names, _ in lines["whole"] if step < 7 for i in names]
        weights = [torch.load(tmp_path / n / f"{rank}.pt", weights_only=True) for n in ("whole", "cut")]
        assert torch.equal(*weights)
    assert sorted(everything) == sorted("-".join(k) for k in keys)
