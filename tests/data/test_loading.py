import gc
import random

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lit_insert.data.loading import (
    BrokenSample,
    SkippedSample,
    processed_batches,
    resumable_loader,
    sample_generator,
    this_rank,
)
from lit_insert.errors import InputError


class Numbers:
    """Sample i is its number and an augmentation drawn for (epoch, i)."""

    def __init__(self, length, broken=(), skipped=()):
        self.length, self.broken, self.skipped = length, set(broken), set(skipped)

    def __len__(self):
        return self.length

    def sample(self, index, epoch):
        if index in self.broken:
            raise BrokenSample(f"file-{index}.png", "truncated")
        if index in self.skipped:
            raise SkippedSample(f"row-{index}", "too small")
        return {"id": index, "noise": torch.rand((), generator=sample_generator(7, epoch, index))}


def read(loader, count=None):
    out = []
    for batch in loader:
        out.append((batch["id"].tolist(), batch["noise"].tolist()))
        if len(out) == count:
            break
    return out


def numbers(epoch_batches):
    return [i for ids, _ in epoch_batches for i in ids]


def test_plain_loops_see_everything_once_and_shuffle_anew():
    loader = resumable_loader(Numbers(23), 4, seed=5)
    first, second = read(loader), read(loader)
    assert sorted(numbers(first)) == sorted(numbers(second)) == list(range(23))
    assert numbers(first) != numbers(second)
    assert len(first) == len(loader) == 6
    assert [len(ids) for ids, _ in first] == [4, 4, 4, 4, 4, 3]


def test_workers_do_not_change_anything():
    plain, workers = (resumable_loader(Numbers(23), 4, n, seed=5) for n in (0, 2))
    assert read(plain) + read(plain) == read(workers) + read(workers)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [1, 4, 6])
def test_state_continues_bit_for_bit(num_workers, taken):
    whole = resumable_loader(Numbers(23), 4, seed=5)
    expected = read(whole) + read(whole) + read(whole)
    loader = resumable_loader(Numbers(23), 4, num_workers, seed=5)
    read(loader)
    start = read(loader, taken)
    other = resumable_loader(Numbers(23), 4, 2 - num_workers, seed=5)
    other.load_state_dict(loader.state_dict())
    assert other.state_dict() == loader.state_dict()
    assert start == expected[6 : 6 + taken]
    assert read(other) + read(other) == expected[6 + taken :]


def test_closing_ends_the_workers_and_reading_can_go_on():
    loader = resumable_loader(Numbers(23), 4, 2, seed=5)
    expected = read(resumable_loader(Numbers(23), 4, seed=5))
    assert read(loader) == expected
    workers = loader._iterator._workers
    assert all(worker.is_alive() for worker in workers)
    loader.close()
    assert not any(worker.is_alive() for worker in workers)
    loader.set_epoch(0)
    assert read(loader) == expected
    loader.close()


def test_ranks_share_the_samples_of_one_process(monkeypatch):
    whole = numbers(read(resumable_loader(Numbers(24), 4, seed=1)))
    parts = []
    for rank in range(2):
        monkeypatch.setattr("lit_insert.data.loading.this_rank", lambda rank=rank: (rank, 2))
        parts.append([ids for ids, _ in read(resumable_loader(Numbers(24), 2, seed=1))])
    assert [i for pair in zip(*parts, strict=True) for ids in pair for i in ids] == whole


def test_unshuffled_is_in_order():
    assert numbers(read(resumable_loader(Numbers(5), 2, shuffle=False))) == [0, 1, 2, 3, 4]


def test_datasets_without_sample_get_numbers():
    assert [b.tolist() for b in resumable_loader(list(range(5)), 2, shuffle=False)] == [[0, 1], [2, 3], [4]]

    class Batched(list):
        def __getitems__(self, indices):
            return [10 * i for i in indices]

    assert [b.tolist() for b in resumable_loader(Batched([0] * 4), 2, shuffle=False)] == [[0, 10], [20, 30]]


def test_the_global_random_stream_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    read(resumable_loader(Numbers(8), 2))
    assert torch.rand(1) == expected


def test_generators_differ_by_seed_epoch_and_index():
    draws = {
        torch.rand((), generator=sample_generator(s, e, i)).item()
        for s in range(3)
        for e in range(3)
        for i in range(50)
    }
    assert len(draws) == 450


def test_workers_of_a_loader_left_in_a_cycle_end_by_themselves():
    loader = resumable_loader(Numbers(23), 4, 2)
    loader.itself = loader
    next(iter(loader))
    workers = loader._iterator._workers
    del loader
    gc.collect()
    assert [worker.exitcode for worker in workers] == [0, 0]  # -15 where they had to be killed


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_samples_are_left_out_named_and_counted(num_workers, caplog):
    loader = resumable_loader(Numbers(200, broken=[3, 77]), 8, num_workers, shuffle=False, max_broken_fraction=0.02)
    seen = numbers(read(loader))
    assert seen == [i for i in range(200) if i not in (3, 77)]
    assert loader.broken == {"file-3.png": "truncated", "file-77.png": "truncated"}
    read(loader)
    assert len(loader.broken) == 2
    assert sum("file-77.png" in r.message for r in caplog.records) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_broken_samples_stop_with_the_last_name(num_workers):
    loader = resumable_loader(Numbers(100, broken=[5, 40, 60]), 8, num_workers, shuffle=False)
    with pytest.raises(InputError, match=r"^3 of 100 .*the last is file-60.png: truncated.*$") as error:
        read(loader)
    assert "\n" not in str(error.value)


def test_skipped_samples_do_not_count_as_broken():
    loader = resumable_loader(Numbers(20, skipped=range(10)), 4, shuffle=False)
    assert numbers(read(loader))[-10:] == list(range(10, 20))
    assert loader.broken == {}
    assert loader.skipped["row-9"] == "too small"


def test_an_unusable_batch_takes_its_neighbour():
    loader = resumable_loader(Numbers(12, skipped=[0, 1, 2, 3, 4]), 4, shuffle=False)
    assert [ids for ids, _ in read(loader)] == [[5], [5, 6, 7], [8, 9, 10, 11]]


def test_nothing_usable_is_an_error():
    with pytest.raises(InputError, match="the last is row-"):
        read(resumable_loader(Numbers(6, skipped=range(6)), 2))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_input_errors_keep_to_one_line(num_workers):
    class Wrong(Numbers):
        def sample(self, index, epoch):
            raise InputError("rows and masks differ")

    with pytest.raises(InputError, match=r"^rows and masks differ$"):
        read(resumable_loader(Wrong(4), 2, num_workers))


@pytest.mark.parametrize(
    ("changed", "key"),
    [({"seed": 2}, "seed"), ({"batch_size": 3}, "batch_size"), ({"shuffle": False}, "order")],
)
def test_resuming_within_an_epoch_refuses_other_settings(changed, key):
    loader = resumable_loader(Numbers(23), batch_size=4, seed=1, shuffle=True)
    read(loader, 2)
    other = resumable_loader(Numbers(23), **({"batch_size": 4, "seed": 1, "shuffle": True} | changed))
    with pytest.raises(InputError, match=f"{key} was"):
        other.load_state_dict(loader.state_dict())


def test_resuming_between_epochs_takes_other_settings():
    loader = resumable_loader(Numbers(23), 4)
    read(loader)
    other = resumable_loader(Numbers(23), 5)
    other.load_state_dict(loader.state_dict())
    assert other.state_dict()["epoch"] == 1


def test_batch_size_must_be_positive():
    with pytest.raises(InputError, match="batch_size is 0"):
        resumable_loader(Numbers(4), 0)


def test_one_process_is_rank_zero_of_one():
    assert this_rank() == (0, 1)


class Data(pl.LightningDataModule):
    def __init__(self, num_workers=0, length=22):
        super().__init__()
        self.num_workers, self.length = num_workers, length

    def train_dataloader(self):
        return resumable_loader(
            Numbers(self.length), 4, self.num_workers, seed=2, processed=lambda: processed_batches(self)
        )

    def val_dataloader(self):
        return resumable_loader(Numbers(5), 2, 0, shuffle=False)


class Toy(pl.LightningModule):
    """Records what it sees; its one weight depends on the order of everything seen."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.fail_at = [], fail_at

    def training_step(self, batch, batch_idx):
        if len(self.seen) == self.fail_at:
            raise KeyboardInterrupt
        self.seen.append((batch["id"].tolist(), batch["noise"].tolist(), batch_idx))
        return (self.weight - batch["noise"].mean() - batch["id"][0]).square()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class SaveAt(Callback):
    def __init__(self, folder, hook, when):
        self.folder, self.hook, self.when, self.calls = folder, hook, when, 0

    def _save(self, trainer, hook):
        if hook == self.hook and not trainer.sanity_checking:
            self.calls += 1
            if self.calls == self.when:
                trainer.save_checkpoint(self.folder / "mid.ckpt")

    def on_train_batch_end(self, trainer, *args):
        self._save(trainer, "batch")

    def on_train_epoch_end(self, trainer, module):
        self._save(trainer, "epoch")

    def on_validation_end(self, trainer, module):
        self._save(trainer, "validation")


def trainer(callbacks=(), **options):
    defaults = {"max_epochs": 3, "val_check_interval": 3, "num_sanity_val_steps": 1}
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **(defaults | options),
    )


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_steps": 17, "max_epochs": -1}])
@pytest.mark.parametrize(
    ("hook", "when"),
    [*[("batch", n) for n in (1, 4, 6, 9, 12)], ("epoch", 1), ("epoch", 2)] + [("validation", n) for n in (1, 2, 3)],
)
def test_a_resumed_trainer_sees_what_the_uninterrupted_one_saw(tmp_path, hook, when, limit, num_workers):
    whole = Toy()
    save = SaveAt(tmp_path, hook, when)
    trainer([save], **limit).fit(whole, datamodule=Data(num_workers))
    state = torch.load(tmp_path / "mid.ckpt", weights_only=True)
    done = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]

    resumed = Toy()
    trainer(**limit).fit(resumed, datamodule=Data(2 - num_workers), ckpt_path=tmp_path / "mid.ckpt", weights_only=True)
    assert len(whole.seen) in (17, 18)
    assert resumed.seen == whole.seen[done:]
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.parametrize("at", [2, 5, 6, 10])
def test_a_step_that_was_broken_off_is_repeated(tmp_path, at):
    whole = Toy()
    trainer().fit(whole, datamodule=Data())
    broken = Toy(fail_at=at)
    keep = ModelCheckpoint(tmp_path, filename="stopped", save_on_exception=True, save_top_k=0, save_last=True)
    with pytest.raises(BaseException):  # noqa: B017, PT011  (Lightning turns Ctrl-C into its own exit)
        trainer([keep]).fit(broken, datamodule=Data())
    saved = max(tmp_path.glob("*.ckpt"), key=lambda p: p.stat().st_mtime)
    resumed = Toy()
    trainer().fit(resumed, datamodule=Data(), ckpt_path=saved)
    assert broken.seen + resumed.seen == whole.seen


def test_fewer_batches_per_epoch_than_there_are(tmp_path):
    module = Toy()
    trainer(limit_train_batches=2, val_check_interval=1.0).fit(module, datamodule=Data(2))
    ids = [tuple(s[0]) for s in module.seen]
    whole = resumable_loader(Numbers(22), 4, seed=2)
    assert ids == [tuple(i) for epoch in range(3) for i, _ in read(whole)[:2] if epoch >= 0]


def test_random_places(tmp_path):
    draw = random.Random(0)
    for trial in range(5):
        length, size = draw.randint(5, 60), draw.randint(1, 9)
        whole = resumable_loader(Numbers(length), size, seed=trial)
        expected = read(whole) + read(whole)
        stop = draw.randint(1, len(whole))
        loader = resumable_loader(Numbers(length), size, seed=trial)
        start = read(loader, stop)
        other = resumable_loader(Numbers(length), size, seed=trial)
        other.load_state_dict(loader.state_dict())
        assert start + read(other) + read(other) == expected
