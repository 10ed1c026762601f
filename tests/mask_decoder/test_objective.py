"""Losses against torchvision, hand formulas, and what must never matter."""

import pytest
import torch
from tiny_mask import seeded
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from lit_insert.errors import InputError
from lit_insert.mask_decoder import objective
from lit_insert.mask_decoder.objective import LossWeights, mask_loss

LOSSES = [
    objective.bce_loss,
    objective.dice_loss,
    objective.jaccard_loss,
    objective.tversky_loss,
    objective.focal_loss,
    objective.boundary_loss,
]


@pytest.fixture
def pair():
    logits = torch.randn(3, 1, 16, 20, generator=seeded(1)) * 2
    mask = torch.zeros(3, 1, 16, 20)
    mask[0, :, 3:9, 4:12] = 1
    mask[1, :, 8:, 15:] = 1  # touches the frame; the third is empty
    return logits, mask


def test_pixel_losses_are_torchs_own(pair):
    logits, mask = pair
    assert torch.allclose(objective.bce_loss(logits, mask), F.binary_cross_entropy_with_logits(logits, mask))
    for gamma, alpha in ((2.0, None), (1.5, 0.25), (0.0, 0.6)):
        wanted = sigmoid_focal_loss(logits, mask, -1 if alpha is None else alpha, gamma, "mean")
        assert torch.allclose(objective.focal_loss(logits, mask, gamma, alpha), wanted, atol=1e-6)


def test_overlaps_are_the_formulas(pair):
    logits, mask = pair
    dice, jaccard, tversky = 0.0, 0.0, 0.0
    for p, y in zip(logits.sigmoid().double(), mask.double(), strict=True):
        both, either = float((p * y).sum()), float((p + y - p * y).sum())
        dice += (1 - (2 * both + 1) / (float(p.sum() + y.sum()) + 1)) / 3
        jaccard += (1 - (both + 1) / (either + 1)) / 3
        alarm, miss = float((p * (1 - y)).sum()), float(((1 - p) * y).sum())
        tversky += (1 - (both + 1) / (both + 0.2 * alarm + 0.9 * miss + 1)) / 3
    assert float(objective.dice_loss(logits, mask)) == pytest.approx(dice, rel=1e-5)
    assert float(objective.jaccard_loss(logits, mask)) == pytest.approx(jaccard, rel=1e-5)
    assert float(objective.tversky_loss(logits, mask, 0.2, 0.9)) == pytest.approx(tversky, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_right_is_nothing_wrong_is_much_and_it_can_be_learned(pair, loss):
    _, mask = pair
    right = loss(mask * 60 - 30, mask)
    wrong = loss(30 - mask * 60, mask)
    if loss is objective.boundary_loss:  # outlines alone do not tell in from out
        wrong = loss(torch.roll(mask, 8, -1) * 60 - 30, mask)
    assert 0 <= float(right) < 1e-4 < 0.3 < float(wrong)
    logits = (torch.randn(mask.shape, generator=seeded(2)) * 0.1).requires_grad_(True)
    before = loss(logits, mask)
    (gradient,) = torch.autograd.grad(before, logits)
    logits = logits.detach()
    assert gradient.isfinite().all()
    assert loss(logits - 0.1 * gradient / gradient.norm(), mask) < before


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_pixels_do_not_count(pair, loss):
    logits, mask = pair
    mask[:, :, :, 10:14] = 255
    value = loss(logits.requires_grad_(True), mask)
    (gradient,) = torch.autograd.grad(value, logits)
    assert not gradient[..., 10:14].any()
    assert gradient[..., :8].any()
    other = logits.detach().clone()
    other[..., 10:14] = 40
    assert torch.equal(loss(other, mask), value)
    nothing = loss(logits, torch.full_like(mask, 255.0))
    assert float(nothing.detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_is_the_mean_of_its_pictures_and_half_precision_is_lifted(pair, loss):
    logits, mask = pair
    mask[0, :, :5] = 255
    apart = torch.stack([loss(a[None], b[None]) for a, b in zip(logits, mask, strict=True)]).mean()
    assert torch.allclose(loss(logits, mask), apart, atol=1e-6)
    assert loss(logits.bfloat16(), mask).dtype == torch.float32


def test_outlines_within_the_tolerance_are_found():
    mask = torch.zeros(1, 1, 24, 24)
    mask[..., 8:16, 8:16] = 1
    values = [float(objective.boundary_loss(torch.roll(mask, by, -1) * 60 - 30, mask)) for by in (0, 2, 3, 6)]
    assert values[0] < 1e-4
    assert values[1] < 1e-4 < 0.1 < values[2] < values[3]


def test_presence_is_unknown_where_nothing_is_seen_and_something_is_ignored():
    mask = torch.zeros(4, 1, 4, 4)
    mask[0, :, 1, 1] = 1
    mask[1, :, 1, 1:3] = torch.tensor([1.0, 255.0])
    mask[2, :, 1, 1] = 255
    present, known = objective.presence_target(mask)
    assert present.tolist() == [1, 1, 0, 0]
    assert known.tolist() == [1, 1, 0, 1]
    logits = torch.tensor([2.0, -1.0, 5.0, 0.5])
    wanted = F.binary_cross_entropy_with_logits(logits, present, reduction="none")[[0, 1, 3]].sum() / 4
    assert torch.allclose(objective.presence_loss(logits, mask), wanted)


def test_the_sum_has_what_is_weighted(pair):
    logits, mask = pair
    presence = torch.zeros(3)
    parts = mask_loss(logits, presence, mask, LossWeights(bce=0.5, dice=0, jaccard=2, presence=0.25))
    assert parts.keys() == {"loss", "bce_loss", "jaccard_loss", "presence_loss"}
    wanted = 0.5 * parts["bce_loss"] + 2 * parts["jaccard_loss"] + 0.25 * parts["presence_loss"]
    assert torch.allclose(parts["loss"], wanted)


def test_mistakes_are_named():
    with pytest.raises(InputError, match=r"loss\.dice is -1"):
        LossWeights(dice=-1)
    with pytest.raises(InputError, match="bce, dice, jaccard, tversky and focal are all 0"):
        LossWeights(bce=0, dice=0, boundary=1)
    with pytest.raises(ValueError, match=r"expected two \(B,1,H,W\)"):
        objective.bce_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4))
