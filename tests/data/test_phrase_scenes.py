"""Scenes with phrases."""

import pytest
import torch

from lit_insert.data import world
from lit_insert.data.phrase_scenes import (
    ANY,
    PhraseSceneDataset,
    PhraseScenesDataModule,
    draw,
    named,
    phrase,
    rearrange,
)
from lit_insert.errors import InputError


@pytest.fixture(scope="module")
def batch():
    return PhraseSceneDataset("train", 256, size=32, phrases=6, least=0).batch(range(256))


def test_words():
    assert phrase((0, 0, 1)) == "striped red circle"
    assert phrase((3, 1, ANY), "a") == "an orange star"
    assert phrase((ANY, 5, ANY), "the", plural=True) == "the blue things"
    assert phrase((4, ANY, ANY), "a", plural=True) == "crosses"
    assert phrase((ANY, ANY, 2), noun="shape") == "checked shape"


def test_masks_hold_exactly_the_things_that_match(batch):
    for i in range(256):
        for p, kind in enumerate(batch["kinds"][i]):
            mask = torch.zeros(32, 32)
            for k, label in enumerate(batch["labels"][i]):
                if label[0] >= 0 and all(w in (ANY, v) for w, v in zip(kind.tolist(), label.tolist(), strict=True)):
                    mask = torch.maximum(mask, batch["things"][i, k])
            assert torch.equal(mask, batch["masks"][i, p])


def test_words_and_kinds_agree(batch):
    for kinds, phrases in zip(batch["kinds"].tolist(), batch["phrases"], strict=True):
        for (shape, color, texture), text in zip(kinds, phrases.split(";"), strict=True):
            words = text.split()
            assert (world.SHAPES[shape] in text) if shape != ANY else not any(s in words for s in world.SHAPES)
            assert [c for c in world.COLORS if c in words] == ([world.COLORS[color]] if color != ANY else [])
            assert [t for t in world.TEXTURES if t in words] == ([world.TEXTURES[texture]] if texture != ANY else [])


def test_present_and_absent_are_balanced_and_absent_ones_are_near(batch):
    present = batch["masks"].flatten(2).amax(-1) > 0
    some = batch["labels"][:, :, 0].amax(1) >= 0
    assert 0.55 < present[some].float().mean() < 0.8
    assert not present[~some].any()
    near = []
    for i, p in (~present & some[:, None]).nonzero().tolist():
        said = batch["kinds"][i, p] != ANY
        same = (batch["kinds"][i, p] == batch["labels"][i]) & (batch["labels"][i, :, :1] >= 0)
        if said.sum() > 1:
            near.append(bool((same & said).sum(-1).max() >= said.sum() - 1))
    assert sum(near) > 0.7 * len(near)


def test_a_sample_does_not_depend_on_the_others():
    data = PhraseSceneDataset("val", 64, size=32)
    together, alone = data.batch([3, 40])["image"], data.batch([40])["image"]
    assert torch.equal(together[1], alone[0])
    assert data.batch([3, 40])["phrases"][1] == data[40]["phrases"]
    assert not torch.equal(PhraseSceneDataset("test", 64, size=32)[40]["image"], alone[0])


@pytest.mark.parametrize(("least", "most"), [(0, 1), (2, 4), (3, 3)])
def test_how_many_things(least, most):
    labels = PhraseSceneDataset("val", 64, size=32, least=least, most=most).batch(range(64))["labels"]
    counts = set((labels[:, :, 0] >= 0).sum(1).tolist())
    assert counts == set(range(least, most + 1))


def test_rearranged_scenes_have_the_same_things_elsewhere():
    data = PhraseSceneDataset("val", 64, size=32, least=2)
    index = torch.arange(64) + (1 << 40)
    before = data.lay_out(index)
    after, order = rearrange(before, index)
    rows = torch.arange(64)[:, None]
    assert torch.equal(after.scenes.objects.label, before.scenes.objects.label[rows, order])
    assert torch.equal(after.present, before.present[rows, order])
    assert (order != torch.arange(4)).any(1).float().mean() > 0.8
    assert not torch.equal(draw(after, 32)[0], draw(before, 32)[0])


def test_what_a_phrase_names():
    label = torch.tensor([[[0, 0, 0], [0, 1, 2], [1, 0, 0], [0, 0, 0]]])
    kind = torch.tensor([[[0, ANY, ANY], [ANY, 0, 0], [2, ANY, ANY]]])
    present = torch.tensor([[True, True, True, False]])
    expected = [[True, True, False, False], [True, False, True, False], [False] * 4]
    assert named(kind, label, present)[0].tolist() == expected


def test_batches_of_the_data_module():
    data = PhraseScenesDataModule(batch_size=4, size=32, phrases=3, train_length=8, val_length=4)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 32, 32)
    assert batch["masks"].shape == (4, 3, 32, 32)
    assert [p.count(";") for p in batch["phrases"]] == [2] * 4
    val = next(iter(data.val_dataloader()))
    assert (val["labels"][:, :, 0] >= 0).sum(1).min() >= 2


@pytest.mark.parametrize("options", [{"size": 16}, {"phrases": 0}, {"least": 3, "most": 2}, {"most": 5}])
def test_numbers_out_of_range(options):
    with pytest.raises(InputError):
        PhraseSceneDataset("train", 4, **options)


def test_portraits_show_one_large_thing():
    data = PhraseSceneDataset("train", 64, size=32, portraits=0.5)
    batch, plain = data.batch(range(64)), PhraseSceneDataset("train", 64, size=32).batch(range(64))
    largest = batch["things"].flatten(2).mean(-1).amax(1)
    near = largest > plain["things"].flatten(2).mean(-1).max()
    assert 16 < near.sum() < 48
    assert ((batch["labels"][near][..., 0] >= 0).sum(1) == 1).all()
    assert torch.equal(batch["image"][~near], plain["image"][~near])
    rows = batch["things"][near].amax(1)
    middle = (rows.sum(1) * torch.arange(32)).sum(-1) / rows.sum((1, 2))
    assert (middle - 15.5).abs().max() < 4
    corners = batch["image"][near][:, :, ::31, ::31].flatten(2)
    flat = (corners.amax(-1) - corners.amin(-1)).amax(1) < 0.02
    assert 0.2 < flat.float().mean() < 0.9
    with pytest.raises(InputError, match="portraits is -1"):
        PhraseSceneDataset("train", 1, portraits=-1)
    assert PhraseScenesDataModule(portraits=0.25).dataset("val").portraits == 0.25
