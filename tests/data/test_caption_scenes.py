import pytest
import torch

from lit_insert import pocket
from lit_insert.data import world
from lit_insert.data.caption_scenes import CaptionSceneDataset, CaptionScenesDataModule
from lit_insert.errors import InputError
from lit_insert.metrics.insertion import InsertionJudge
from lit_insert.metrics.prompted import PromptedObjects


@pytest.fixture(scope="module")
def scenes():
    return CaptionSceneDataset("train", 64).batch(range(64))


def test_a_sample_depends_on_its_number_alone(scenes):
    again = CaptionSceneDataset("train", 64)[17]
    for key, value in again.items():
        assert torch.equal(value, scenes[key][17]) if isinstance(value, torch.Tensor) else value == scenes[key][17]
    assert not torch.equal(CaptionSceneDataset("val", 64)[17]["image"], again["image"])


def test_captions_name_what_is_there_and_nothing_else(scenes):
    for caption, labels, masks in zip(scenes["caption"], scenes["labels"], scenes["masks"], strict=True):
        there = [world.describe(row) for row in labels if row[0] >= 0]
        text = caption.removeprefix("a photo of ").split(" on ")[0]
        assert sorted(text.split(" and ")) == sorted(there)
        assert (masks.flatten(1).sum(1) > 0).tolist() == (labels[:, 0] >= 0).tolist()
    numbers = torch.bincount((scenes["labels"][..., 0] >= 0).sum(1), minlength=4)[1:]
    assert (numbers > 3).all()
    assert {c.startswith("a photo of ") for c in scenes["caption"]} == {True, False}
    assert {w for c in scenes["caption"] for w in c.split(" on ")[1:]} == set(world.BACKGROUNDS)


def test_captions_may_tell_the_places(scenes):
    told = CaptionSceneDataset("train", 64, places=0.5).batch(range(64))
    assert torch.equal(told["image"], scenes["image"])
    where = ("at top left", "at top right", "at bottom left", "at bottom right")
    changed = 0
    for caption, plain, labels in zip(told["caption"], scenes["caption"], scenes["labels"], strict=True):
        shorter = caption
        for place in where:
            shorter = shorter.replace(f" {place}", "")
        assert shorter == plain
        changed += caption != plain
        if caption != plain:
            for place, label in zip(where, labels, strict=True):
                assert (label[0] < 0) or f"{world.describe(label)} {place}" in caption
    assert 16 < changed < 48
    data = CaptionScenesDataModule(places=1.0)
    assert all(" at " in c for c in data.dataset("train").batch(range(8))["caption"])
    assert not any(" at " in c for c in data.dataset("val").batch(range(8))["caption"])
    with pytest.raises(InputError, match="places is 2"):
        CaptionSceneDataset("train", 1, places=2)


def test_boxes_are_tight(scenes):
    size = scenes["image"].shape[-1]
    for masks, boxes in zip(scenes["masks"], scenes["boxes"], strict=True):
        for mask, box in zip(masks[:, 0], boxes, strict=True):
            x0, y0, x1, y1 = (box * size).round().int().tolist()
            assert mask[y0:y1, x0:x1].sum() == mask.sum()
            if mask.any():
                rows, columns = mask.nonzero().unbind(1)
                assert (x0, y0, x1 - 1, y1 - 1) == (columns.min(), rows.min(), columns.max(), rows.max())


def test_the_judge_finds_what_is_named_and_not_what_another_prompt_names(scenes):
    metric = PromptedObjects(InsertionJudge.from_pretrained(pocket.path("judge")))
    metric.update(scenes["image"], scenes["labels"])
    figures = metric.compute()
    assert min(figures[name] for name in metric.NAMES) > 0.95
    assert figures["control_both"] < 0.2


def test_a_thing_named_twice_must_be_there_twice():
    metric = PromptedObjects(InsertionJudge.from_pretrained(pocket.path("judge")))
    data = CaptionSceneDataset("val", 40, chances=(1, 0, 0)).batch(range(8))
    labels = data["labels"].clone()
    for row in labels:
        place = int((row[:, 0] >= 0).nonzero()[0, 0])
        row[(place + 1) % 4] = row[place]
    metric.update(data["image"], labels)
    assert metric.compute()["all"] == pytest.approx(0.5, abs=0.07)


def test_loaders_resume_and_bad_settings_are_told():
    data = CaptionScenesDataModule(batch_size=4, train_length=12)
    first = next(iter(data.train_dataloader()))
    assert first["image"].shape == (4, 3, 32, 32)
    assert next(iter(data.train_dataloader()))["id"] == first["id"]
    assert len(next(iter(data.val_dataloader()))["caption"]) == 4
    with pytest.raises(InputError, match="chances"):
        CaptionSceneDataset("train", 1, chances=(1, 1, 1))
    with pytest.raises(InputError, match="size is 8"):
        CaptionSceneDataset("train", 1, size=8)
