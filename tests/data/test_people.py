import logging
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser
from mask_samples import write_coco, write_pairs

from lit_insert.data import loading
from lit_insert.data.coco_masks import CocoMasks
from lit_insert.data.mask_folder import MaskFolder
from lit_insert.data.mask_scenes import MaskScenes
from lit_insert.data.paired import Augmentation
from lit_insert.data.people import PeopleDataModule
from lit_insert.errors import InputError

SMALL = {"image_size": 32, "batch_size": 4}


def scenes(count=20, **options):
    return PeopleDataModule(MaskScenes("train", count, 32), MaskScenes("val", 6, 32), **(SMALL | options))


def ids(loader):
    return [i for batch in loader for i in batch["id"]]


def same(one, other):
    return all(torch.equal(a[k], b[k]) for a, b in zip(one, other, strict=True) for k in ("image", "mask"))


def test_batches_of_every_source(tmp_path):
    write_pairs(tmp_path / "set", 6)
    sources = (MaskScenes("train", 6, 48), MaskFolder(str(tmp_path / "set")), CocoMasks(*write_coco(tmp_path / "coco")))
    for source in sources:
        data = PeopleDataModule(source, image_size=(32, 48), batch_size=3)
        batch = next(iter(data.train_dataloader()))
        assert batch["image"].shape == (3, 3, 32, 48)
        assert batch["mask"].shape == (3, 1, 32, 48)
        assert batch["image"].dtype == batch["mask"].dtype == torch.float32
        assert batch["image"].abs().max() <= 1
        assert set(batch["mask"].unique().tolist()) <= {0.0, 1.0, 255.0}
        assert len(batch["id"]) == 3


def test_validation_is_in_order_and_the_same_every_time():
    data = scenes()
    first, second = list(data.val_dataloader()), list(data.val_dataloader())
    assert [i for b in first for i in b["id"]] == [f"scene-val-{n}" for n in range(6)]
    assert same(first, second)
    plain = data.sources["val"].picture(2)
    assert torch.equal(first[0]["mask"][2, 0], plain.mask.float())


def test_training_differs_from_epoch_to_epoch_but_not_from_run_to_run():
    runs = []
    for _ in range(2):
        loader = scenes().train_dataloader()
        runs.append([list(loader), list(loader)])
    assert same(runs[0][0], runs[1][0])
    assert same(runs[0][1], runs[1][1])
    assert sorted(ids(runs[0][0])) == sorted(ids(runs[0][1]))
    assert ids(runs[0][0]) != ids(runs[0][1])


@pytest.mark.parametrize("workers", [0, 1])
def test_resumes_within_an_epoch_bit_for_bit(tmp_path, workers):
    write_pairs(tmp_path, 12)
    whole = list(PeopleDataModule(MaskFolder(str(tmp_path)), **SMALL).train_dataloader())
    data = PeopleDataModule(MaskFolder(str(tmp_path)), **SMALL)
    first = data.train_dataloader()
    iterator = iter(first)
    seen = [next(iterator)]
    second = PeopleDataModule(MaskFolder(str(tmp_path)), **SMALL, num_workers=workers).train_dataloader()
    second.load_state_dict(first.state_dict())
    assert same(seen + list(second), whole)
    second.close()


def test_ranks_share_an_epoch(monkeypatch):
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(loading, "this_rank", lambda rank=rank: (rank, 2))
        parts.append(ids(scenes(16, batch_size=2).train_dataloader()))
    monkeypatch.undo()
    assert len(parts[0]) == len(parts[1]) == 8
    assert sorted(parts[0] + parts[1]) == sorted(f"scene-train-{n}" for n in range(16))


@pytest.mark.parametrize("options", [{"cache": False}, {"cache_mb": 0.02}])
def test_memory_changes_nothing(tmp_path, options):
    write_pairs(tmp_path, 8)
    kept, other = (PeopleDataModule(MaskFolder(str(tmp_path)), **SMALL, **o) for o in ({}, options))
    one, two = kept.train_dataloader(), other.train_dataloader()
    for _ in range(2):
        assert same(list(one), list(two))
    assert len(kept.dataset("train")._kept) == 8
    assert len(other.dataset("train")._kept) < 8


def test_pictures_that_are_kept_are_read_once(tmp_path, monkeypatch):
    write_pairs(tmp_path, 4)
    source, reads = MaskFolder(str(tmp_path)), []
    original = source.picture
    monkeypatch.setattr(source, "picture", lambda index: (reads.append(index), original(index))[1])
    loader = PeopleDataModule(source, **SMALL).train_dataloader()
    for _ in range(3):
        list(loader)
    assert sorted(reads) == [0, 1, 2, 3]


def test_broken_pictures_are_left_out_named_and_limited(tmp_path, caplog):
    write_pairs(tmp_path, 12)
    (tmp_path / "images" / "004.jpg").write_bytes(b"torn")
    data = PeopleDataModule(MaskFolder(str(tmp_path)), **SMALL, max_broken_fraction=0.1)
    assert len(ids(data.train_dataloader())) == 11
    with caplog.at_level(logging.WARNING):
        data.teardown("fit")
    assert "004.jpg" in caplog.text
    with pytest.raises(InputError, match=r"1 of 12 samples cannot be read.*004\.jpg"):
        ids(PeopleDataModule(MaskFolder(str(tmp_path)), **SMALL).train_dataloader())


def test_training_pictures_may_not_be_validated_on(tmp_path):
    write_pairs(tmp_path, 12)
    folder = partial(MaskFolder, str(tmp_path))
    PeopleDataModule(folder("train", val_count=3), folder("val", val_count=3))
    with pytest.raises(InputError, match="3 pictures are both in train and in val or test"):
        PeopleDataModule(folder("train"), folder("val", val_count=3))


def test_setup_looks_at_the_masks(tmp_path, caplog):
    write_pairs(tmp_path / "a", 5)
    write_pairs(tmp_path / "a", 1, first=5, values=0)
    write_pairs(tmp_path / "b", 3, values=0)
    data = PeopleDataModule(MaskFolder(str(tmp_path / "a")), **SMALL)
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert "1 of 6 masks are empty: 005" in caplog.text
    assert "nothing is validated" in caplog.text
    assert data.reports["train"].empty == ["005"]
    with pytest.raises(InputError, match="all 3 masks are empty"):
        PeopleDataModule(MaskFolder(str(tmp_path / "b"))).setup("fit")
    PeopleDataModule(MaskFolder(str(tmp_path / "b")), check=0).setup("fit")


def test_stages_without_their_pictures():
    data = PeopleDataModule(MaskScenes("train", 4, 32))
    assert data.val_dataloader() == []
    for stage, name in (("validate", "val"), ("test", "test"), ("predict", "predict")):
        with pytest.raises(InputError, match=rf"data\.{name} is not given"):
            data.setup(stage)
    with pytest.raises(InputError, match=r"data\.train is not given"):
        PeopleDataModule(val=MaskScenes("val", 4, 32)).setup("fit")
    judged = PeopleDataModule(val=MaskScenes("val", 4, 32), **SMALL)
    assert ids(judged.test_dataloader()) == ids(judged.predict_dataloader()) == ids(judged.val_dataloader())


class Counts(pl.LightningModule):
    """Adds up pixels of objects; notes what it sees."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch):
        self.seen += batch["id"]
        return self.weight * (batch["mask"] == 1).float().mean()

    def validation_step(self, batch):
        assert (batch["mask"] <= 1).all()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_trainer_resumes_where_it_stopped(tmp_path):
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options |= {"default_root_dir": tmp_path, "enable_checkpointing": False}
    whole, resumed = Counts(), Counts()

    def save(trainer, module, *args):
        if trainer.global_step == 3:
            trainer.save_checkpoint(tmp_path / "third.ckpt")

    saver = pl.callbacks.LambdaCallback(on_train_batch_end=save)
    pl.Trainer(max_steps=8, callbacks=[saver], **options).fit(whole, scenes())
    fresh = pl.Trainer(max_steps=8, **options)
    fresh.fit(resumed, scenes(), ckpt_path=tmp_path / "third.ckpt", weights_only=True)
    assert len(whole.seen) == 8 * 4
    assert resumed.seen == whole.seen[3 * 4 :]


def test_sources_are_named_in_configurations(tmp_path):
    write_pairs(tmp_path, 12)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PeopleDataModule, "data")
    folder = {"folder": str(tmp_path), "val_count": 4}
    config = {
        "class_path": "lit_insert.data.people.PeopleDataModule",
        "init_args": {
            "train": {"class_path": "lit_insert.data.mask_folder.MaskFolder", "init_args": folder},
            "val": {"class_path": "MaskFolder", "init_args": folder | {"split": "val"}},
            "image_size": [32, 64],
            "augmentation": {"zoom": [1.0, 1.5]},
        },
    }
    data = parser.instantiate_classes(parser.parse_object({"data": config})).data
    assert (len(data.sources["train"]), len(data.sources["val"])) == (8, 4)
    assert data.size == (32, 64)
    assert data.transforms["train"].augmentation == Augmentation(zoom=(1.0, 1.5))
    assert data.transforms["val"].augmentation is None
    config["init_args"]["augmentation"] = None
    assert (
        parser.instantiate_classes(parser.parse_object({"data": config})).data.transforms["train"].augmentation is None
    )
