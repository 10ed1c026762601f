import pytest
import torch
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index

from lit_insert.metrics.mask import BoundaryF, Dice, GlobalIoU, ImageIoU, PresenceAccuracy, mask_metrics


@pytest.fixture
def batch():
    """Blobs, one empty picture, and an ignored corner."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 1, 4, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (24, 30), mode="bilinear")
    mask = (smooth > 0.55).float()
    mask[2] = 0
    mask[:3, :, :7, :9] = 255
    noise = torch.nn.functional.interpolate(torch.rand(6, 1, 6, 6, generator=generator), (24, 30), mode="bilinear")
    return {"probability": (0.7 * smooth + 0.3 * noise).clamp(0, 1), "mask": mask}


def one(metric, probability, mask):
    metric.update(probability, mask)
    return float(metric.compute())


def brute_boundary_f(found, truth, counts, tolerance):
    """By loops and a table of all distances."""

    def boundary(m):
        height, width = m.shape
        points = []
        for y in range(height):
            for x in range(width):
                near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                near = [(a, b) for a, b in near if 0 <= a < height and 0 <= b < width]
                if counts[y, x] and m[y, x] and any(counts[p] and not m[p] for p in near):
                    points.append((y, x))
        return torch.tensor(points, dtype=torch.float64).reshape(-1, 2)

    a, b = boundary(found), boundary(truth)
    if len(a) == 0 or len(b) == 0:
        return float(len(a) == len(b))
    close = torch.cdist(a, b) <= tolerance + 1e-9
    precision, recall = close.any(1).double().mean(), close.any(0).double().mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall > 0 else 0.0


def test_overlaps_equal_torchmetrics_picture_by_picture(batch):
    p, m = batch["probability"], batch["mask"]
    whole = binary_jaccard_index(p, m.long(), ignore_index=255)
    assert one(GlobalIoU(), p, m) == pytest.approx(float(whole), abs=1e-6)
    pairs = [(p[i], m[i].long()) for i in range(6)]
    iou = [float(binary_jaccard_index(a, b, ignore_index=255)) for a, b in pairs]
    dice = [float(binary_f1_score(a, b, ignore_index=255)) for a, b in pairs]
    assert one(ImageIoU(), p, m) == pytest.approx(sum(iou) / 6, abs=1e-6)
    assert one(Dice(), p, m) == pytest.approx(sum(dice) / 6, abs=1e-6)


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 2, 3])
def test_boundary_f_equals_brute_force(batch, tolerance):
    p, m = batch["probability"], batch["mask"]
    found = BoundaryF(tolerance).scores(p, m)
    expected = [brute_boundary_f(p[i, 0] > 0.5, m[i, 0] == 1, m[i, 0] != 255, tolerance) for i in range(len(m))]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert 0 < found.mean() < 1


def test_boundary_f_of_a_shifted_square():
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 10:30, 10:30] = 1
    for shift, perfect in ((0, True), (2, True), (3, False), (8, False)):
        score = one(BoundaryF(2), torch.roll(mask, shift, dims=-1), mask)
        assert (score == 1.0) == perfect
    half = one(BoundaryF(2), torch.roll(mask, 12, dims=-1), mask)
    assert half < one(BoundaryF(2), torch.roll(mask, 3, dims=-1), mask)


def test_the_frame_is_no_boundary():
    whole = torch.ones(1, 1, 8, 8)
    assert one(BoundaryF(), whole, whole) == 1.0
    half = whole.clone()
    half[..., 4:] = 0
    assert one(BoundaryF(), whole, half) == 0.0  # nothing predicted where there is an edge


def test_empty_pictures():
    nothing, thing = torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)
    thing[..., 2:4, 2:4] = 1
    for metric in (GlobalIoU, ImageIoU, Dice, BoundaryF):
        assert one(metric(), nothing, nothing) == 1.0
        assert one(metric(), nothing, thing) == 0.0
        assert one(metric(), thing, nothing) == 0.0
    both, truth = torch.cat([nothing, thing]), torch.cat([nothing, nothing])
    assert one(ImageIoU(), both, truth) == 0.5
    assert one(GlobalIoU(), both, truth) == 0.0


def test_ignored_pixels_change_nothing(batch):
    p, m = batch["probability"], batch["mask"]
    for metric in (GlobalIoU, ImageIoU, Dice, BoundaryF):
        before = one(metric(), p, m)
        for value in (0.0, 1.0):
            assert one(metric(), torch.where(m == 255, value, p), m) == before


def test_threshold_is_exclusive_and_obeyed():
    p, m = torch.full((1, 1, 2, 2), 0.5), torch.ones(1, 1, 2, 2)
    assert one(ImageIoU(), p, m) == 0.0
    assert one(ImageIoU(0.49), p, m) == 1.0


def test_presence():
    mask = torch.zeros(4, 1, 4, 4)
    mask[0, 0, 1, 1] = 1
    mask[1, 0, 0] = 255  # no foreground, but what is ignored may be some: unknown
    mask[3, 0, 2, 2] = 1
    metric = PresenceAccuracy()
    metric.update(torch.tensor([0.9, 0.9, 0.2, 0.1]), mask)
    assert float(metric.compute()) == pytest.approx(2 / 3)


def test_state_sums_over_processes_and_batches(batch):
    p, m = batch["probability"], batch["mask"]
    whole, first, second = mask_metrics(), mask_metrics(), mask_metrics()
    presence = torch.linspace(0, 1, 6)
    whole.update(probability=p, mask=m, presence=presence)
    first.update(probability=p[:2], mask=m[:2], presence=presence[:2])
    second.update(probability=p[2:], mask=m[2:], presence=presence[2:])
    for name, metric in first.items():
        for state, reduction in metric._reductions.items():  # what torchmetrics does across processes
            both = torch.stack([getattr(metric, state), getattr(second[name], state)])
            setattr(metric, state, reduction(both))
    expected = whole.compute()
    assert set(expected) == {"iou", "image_iou", "dice", "boundary_f", "presence_accuracy"}
    for name, value in first.compute().items():
        assert value == pytest.approx(expected[name])


def test_a_perfect_first_batch_does_not_merge_the_metrics():
    thing = torch.zeros(1, 1, 8, 8)
    thing[..., 2:6, 2:6] = 1
    metrics = mask_metrics(prefix="val/")
    metrics.update(probability=thing, mask=thing, presence=torch.ones(1))
    metrics.update(probability=torch.roll(thing, 1, dims=-1), mask=thing, presence=torch.ones(1))
    found = {k: float(v) for k, v in metrics.compute().items()}
    assert found["val/image_iou"] == pytest.approx((1 + 12 / 20) / 2)
    assert found["val/dice"] == pytest.approx((1 + 24 / 32) / 2)
    assert found["val/boundary_f"] == 1.0
    metrics.reset()
    assert float(metrics["image_iou"].pictures) == 0


def test_logits_and_wrong_shapes_are_refused():
    mask = torch.zeros(1, 1, 4, 4)
    for metric in (GlobalIoU(), ImageIoU(), Dice(), BoundaryF()):
        with pytest.raises(ValueError, match="sigmoid"):
            metric.update(mask - 3, mask)
        with pytest.raises(ValueError, match="expected two"):
            metric.update(mask, mask[:, :, :3])
    with pytest.raises(ValueError, match="presence scores"):
        PresenceAccuracy().update(torch.zeros(2), mask)
