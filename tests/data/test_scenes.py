import pytest
import torch

from lit_insert.data.scenes import SceneDataset, ScenesDataModule
from lit_insert.errors import InputError

TENSORS = ("source", "target", "object", "mask", "others", "label")


def test_schema_and_ranges():
    batch = SceneDataset("train", 100, size=48, object_size=40).batch(range(6))
    assert batch["source"].shape == batch["target"].shape == (6, 3, 48, 48)
    assert batch["object"].shape == (6, 3, 40, 40)
    assert batch["mask"].shape == batch["others"].shape == (6, 1, 48, 48)
    assert -1 <= batch["target"].min() < batch["target"].max() <= 1
    assert set(batch["mask"].unique().tolist()) == {0.0, 1.0}
    assert batch["object"].max() <= 2.2
    assert batch["id"] == [f"scene-train-{i}" for i in range(6)]
    assert all(text.startswith("add a") for text in batch["instruction"])


def test_a_sample_is_the_same_whatever_the_batch():
    data = SceneDataset("val", 50)
    batch = data.batch(range(20))
    for number in (0, 7, 19):
        alone = data[number]
        for key in TENSORS:
            assert torch.equal(alone[key], batch[key][number]), key


def test_target_differs_from_source_exactly_at_the_inserted_object():
    batch = SceneDataset("test", 200).batch(range(100))
    changed = (batch["source"] != batch["target"]).any(1, keepdim=True)
    # Anti-aliased edges and thin corners change too, a pixel or two from the mask.
    near = torch.nn.functional.max_pool2d(batch["mask"], 5, 1, 2).bool()
    assert (changed & ~near).sum() < 0.002 * changed.sum()
    assert (changed & batch["mask"].bool()).sum() > 0.98 * batch["mask"].sum()
    assert (batch["mask"] * batch["others"]).sum() == 0


def test_splits_differ():
    a, b = (SceneDataset(split, 10).batch(range(4)) for split in ("val", "test"))
    assert not torch.equal(a["source"], b["source"])


def test_pictures_have_eight_bits():
    picture = (SceneDataset("train", 10).batch(range(3))["target"] + 1) * 127.5
    assert torch.allclose(picture, picture.round(), atol=1e-3)


def test_size_is_checked():
    with pytest.raises(InputError, match="size is 16"):
        SceneDataset("train", 10, size=16)


def test_loader_reads_every_scene_once_an_epoch_with_a_small_last_batch():
    loader = ScenesDataModule(batch_size=8, train_length=20).train_dataloader()
    batches = list(loader)
    assert [len(b["id"]) for b in batches] == [8, 8, 4]
    assert sorted(i for b in batches for i in b["id"]) == sorted(f"scene-train-{i}" for i in range(20))


def test_loader_resumes_within_an_epoch():
    module = ScenesDataModule(batch_size=4, train_length=24)
    whole = [b["id"] for b in module.train_dataloader()]
    first = module.train_dataloader()
    iterator = iter(first)
    seen = [next(iterator)["id"] for _ in range(2)]
    second = module.train_dataloader()
    second.load_state_dict(first.state_dict())
    assert seen + [b["id"] for b in second] == whole
