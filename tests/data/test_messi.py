import re

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from lit_insert.data import loading
from lit_insert.data.messi import ImageFolder, MessiDataModule, SceneImages
from lit_insert.errors import InputError


@pytest.fixture
def photos(tmp_path):
    """24 pictures of two classes, wider than high; the left half is dark, the number is in the blue channel."""
    for n in range(24):
        pixels = np.zeros((20, 30, 3), np.uint8)
        pixels[:, 15:] = 200
        pixels[..., 2] = 10 * n
        Image.fromarray(pixels).save(tmp_path / f"{n % 2}_{n:02}.png")
    return tmp_path


def module(photos, **options):
    source = ImageFolder(str(photos), labels="prefix")
    return MessiDataModule(source, **{"image_size": 8, "batch_size": 5, "seed": 3, **options})


def test_batches_as_modules_meet_them(photos):
    data = module(photos)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [len(b["id"]) for b in batches] == [5, 5, 5, 5, 4]
    batch = batches[0]
    assert batch["image"].shape == (5, 3, 8, 8)
    assert batch["image"].dtype == torch.float32
    assert -1 <= batch["image"].min() < batch["image"].max() <= 1
    assert batch["label"].dtype == torch.int64
    assert batch["label"].tolist() == [int(name[0]) for name in batch["id"]]
    assert sorted(i for b in batches for i in b["id"]) == sorted(p.name for p in photos.iterdir())
    assert data.classes == ["0", "1"]
    assert data.num_classes == 2
    assert data.val_dataloader() == []


def test_without_labels_there_is_no_label(photos):
    data = MessiDataModule(ImageFolder(str(photos)), image_size=8)
    assert set(next(iter(data.train_dataloader()))) == {"image", "id"}
    assert data.num_classes == 0


def test_training_flips_half_and_validation_nothing(photos):
    data = module(photos, val=ImageFolder(str(photos), labels="prefix"))
    dark_left = [b["image"][:, 0, :, 0] < b["image"][:, 0, :, -1] for b in data.val_dataloader()]
    assert torch.cat(dark_left).all()
    loader = data.train_dataloader()
    seen = torch.cat([(b["image"][:, 0, 0, 0] < 0) for _ in range(6) for b in loader])
    assert 0.35 < seen.float().mean() < 0.65
    still = module(photos, flip=False).train_dataloader()
    assert torch.cat([b["image"][:, 0, 0, 0] < 0 for b in still]).all()


@pytest.mark.parametrize("random_crop", [False, True])
def test_cache_and_workers_change_nothing(photos, random_crop):
    def epochs(**options):
        loader = module(photos, random_crop=random_crop, **options).train_dataloader()
        found = [(b["id"], b["image"]) for _ in range(2) for b in loader]
        loader.close()
        return found

    plain = epochs()
    for other in (epochs(cache_mb=1.0), epochs(cache_mb=0.002), epochs(num_workers=1)):
        assert [i for i, _ in other] == [i for i, _ in plain]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(plain, other, strict=True))


def test_the_cache_is_read_instead_of_the_files(photos):
    loader = module(photos, cache_mb=1.0).train_dataloader()
    list(loader)
    for path in photos.iterdir():
        path.write_bytes(b"gone")
    assert sum(len(b["id"]) for b in loader) == 24
    assert not loader.broken


@pytest.mark.parametrize("kind", ["files", "scenes"])
def test_resumes_in_the_middle_of_an_epoch(photos, kind):
    def make():
        if kind == "files":
            return module(photos, random_crop=True).train_dataloader()
        return MessiDataModule(SceneImages(count=24), image_size=16, batch_size=5, cache_mb=1).train_dataloader()

    loader = make()
    list(loader)
    stream = iter(loader)
    next(stream), next(stream)
    state = loader.state_dict()
    rest = [b["image"] for b in stream]
    again = make()
    again.load_state_dict(state)
    resumed = [b["image"] for b in again]
    assert len(resumed) == len(rest) == 3
    assert all(torch.equal(a, b) for a, b in zip(rest, resumed, strict=True))


def test_ranks_share_the_global_batch(photos, monkeypatch):
    alone = list(module(photos, batch_size=4, random_crop=True).train_dataloader())
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(loading, "this_rank", lambda rank=rank: (rank, 2))
        shares.append(list(module(photos, batch_size=2, random_crop=True).train_dataloader()))
    assert len(alone) == len(shares[0]) == len(shares[1]) == 6
    for whole, first, second in zip(alone, *shares, strict=True):
        assert first["id"] + second["id"] == whole["id"]
        assert torch.equal(torch.cat([first["image"], second["image"]]), whole["image"])


def test_broken_pictures_are_counted_and_limited(photos):
    (photos / "0_00.png").write_bytes(b"no picture")
    data = module(photos, max_broken_fraction=0.05)
    loader = data.train_dataloader()
    assert sum(len(b["id"]) for b in loader) == 23
    assert [name.rpartition("/")[2] for name in loader.broken] == ["0_00.png"]
    (photos / "1_01.png").write_bytes(b"")
    with pytest.raises(InputError, match="2 of 24 samples cannot be read"):
        list(module(photos, max_broken_fraction=0.05).train_dataloader())


def test_other_splits_are_numbered_like_the_training_pictures(photos, tmp_path_factory):
    other = tmp_path_factory.mktemp("val")
    Image.new("RGB", (8, 8)).save(other / "1_x.png")
    data = module(photos, val=ImageFolder(str(other), labels="prefix"))
    data.setup("fit")
    assert next(iter(data.val_dataloader()))["label"].tolist() == [1]
    assert next(iter(data.test_dataloader()))["label"].tolist() == [1]
    Image.new("RGB", (8, 8)).save(other / "7_x.png")
    with pytest.raises(InputError, match="class '7' is none of 0, 1"):
        module(photos, val=ImageFolder(str(other), labels="prefix")).setup("fit")
    with pytest.raises(InputError, match=re.escape("classes of one split are 0, 1 (2), of another none")):
        module(photos, val=ImageFolder(str(other))).setup("fit")


class Mean(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return (batch["image"].mean() - self.weight) ** 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_the_checkpoint_says_what_class_ids_mean(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")

    def fit(data, ckpt_path=None, max_steps=2):
        trainer = pl.Trainer(
            max_steps=max_steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=out,
        )
        trainer.fit(Mean(), data, ckpt_path=ckpt_path)
        return trainer

    fit(module(photos)).save_checkpoint(out / "a.ckpt")
    saved = torch.load(out / "a.ckpt", weights_only=True)
    assert saved["MessiDataModule"] == {"classes": ["0", "1"]}
    fit(module(photos), out / "a.ckpt", 3)
    (photos / "1_01.png").rename(photos / "2_01.png")
    with pytest.raises(InputError, match="was trained on classes 0, 1, the data now has 0, 1, 2"):
        fit(module(photos), out / "a.ckpt", 3)


def test_scenes_need_no_files():
    data = MessiDataModule(
        SceneImages(count=12, labels="color"), SceneImages("val", 5, labels="color"), image_size=16, batch_size=4
    )
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 16, 16)
    pixels, label = data.source("train").draw([int(i.rpartition("-")[2]) for i in batch["id"]], 16)
    assert torch.equal(batch["image"], pixels.float() / 127.5 - 1)
    assert batch["label"].tolist() == label
    assert [len(b["id"]) for b in data.val_dataloader()] == [4, 1]


def test_image_size_is_checked(photos):
    with pytest.raises(InputError, match="image_size is 0"):
        module(photos, image_size=0)
