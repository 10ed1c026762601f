import pytest
import torch

from lit_insert import pocket
from lit_insert.data.scenes import SceneDataset
from lit_insert.metrics.insertion import InsertionJudge, InsertionScore, find_change


@pytest.fixture(scope="module")
def judge():
    return InsertionJudge.from_pretrained(pocket.path("judge"))


@pytest.fixture(scope="module")
def batch():
    return SceneDataset("val", 256).batch(range(256))


def test_the_judge_is_right_on_ground_truth(judge, batch):
    labels, change = judge.judge(batch["source"], batch["target"])
    assert change.found.all()
    assert (labels == batch["label"]).float().mean() >= 0.99


def test_the_true_target_scores_full_and_the_source_nothing(judge, batch):
    truth, copy = InsertionScore(judge), InsertionScore(judge)
    truth.update(batch["source"], batch["target"], batch["label"], batch["others"])
    copy.update(batch["source"], batch["source"], batch["label"], batch["others"])
    best, none = truth.compute(), copy.compute()
    assert best["all"] >= 0.98
    assert best["single"] == best["clear"] == best["found"] == 1
    assert best["background_psnr"] == 100
    assert none["found"] == none["color"] == none["shape"] == 0


def test_another_objects_label_is_wrong(judge, batch):
    score = InsertionScore(judge)
    label = batch["label"].clone()
    label[:, 1] = (label[:, 1] + 1) % 8
    score.update(batch["source"], batch["target"], label, batch["others"])
    assert score.compute()["color"] < 0.02


def test_painting_over_a_thing_is_seen(judge, batch):
    score = InsertionScore(judge)
    result = torch.where(batch["others"].bool(), -batch["source"], batch["target"])
    score.update(batch["source"], result, batch["label"], batch["others"])
    has_others = batch["others"].sum((1, 2, 3)) > 0
    assert score.compute()["clear"] == pytest.approx(1 - has_others.float().mean().item(), abs=0.02)


def test_two_insertions_are_two_blobs():
    source = torch.zeros(1, 3, 32, 32)
    result = source.clone()
    result[..., 4:10, 4:10] = 1
    assert find_change(source, result).blobs.item() == 1
    result[..., 20:26, 20:26] = 1
    change = find_change(source, result)
    assert change.blobs.item() == 2
    result[..., 20:27, 20:27] = 1
    assert find_change(source, result).center.tolist() == [[23.5, 23.5]]


def test_noise_is_no_insertion():
    source = torch.zeros(4, 3, 32, 32)
    noisy = source + 0.05 * torch.randn(source.shape, generator=torch.Generator().manual_seed(0))
    assert not find_change(source, noisy).found.any()
