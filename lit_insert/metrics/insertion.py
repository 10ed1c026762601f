"""Was the right thing inserted? Ground-truth checks for scenes of the procedural world."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from lit_insert.metrics.preservation import BackgroundPreservation

CROP = 24


@dataclass
class Change:
    """Where a result differs from its source.

    ``mask`` (N,1,H,W) bool: every changed pixel. ``center`` (N,2) x,y and ``found`` (N,) bool: the largest connected
    change. ``blobs`` (N,) int64: how many changes are at least a third as large as the largest.
    """

    mask: Tensor
    center: Tensor
    found: Tensor
    blobs: Tensor


def find_change(source: Tensor, result: Tensor, threshold: float = 0.25, min_area: float = 0.01) -> Change:
    """Locate what an edit changed.

    Args:
        source: (N,3,H,W) in [-1,1].
        result: (N,3,H,W) in [-1,1].
        threshold: Largest channel difference that still counts as unchanged, on the [-1,1] scale.
        min_area: Smallest connected change that counts, as a fraction of the picture.
    """
    height, width = source.shape[-2:]
    mask = (result - source).abs().amax(1, keepdim=True) > threshold
    centers, found, blobs = [], [], []
    for sample in mask[:, 0].cpu().numpy().astype(np.uint8):
        _, _, stats, _ = cv2.connectedComponentsWithStats(sample, connectivity=8)
        areas = stats[1:, cv2.CC_STAT_AREA]
        if len(areas) and areas.max() >= min_area * height * width:
            best = int(areas.argmax())
            left, top, w, h = stats[1 + best, :4]
            centers.append((left + w / 2, top + h / 2))
            blobs.append(int((areas * 3 >= areas.max()).sum()))
            found.append(True)
        else:
            centers.append((width / 2, height / 2))
            blobs.append(0)
            found.append(False)
    return Change(mask, torch.tensor(centers), torch.tensor(found), torch.tensor(blobs))


def crop_around(image: Tensor, center: Tensor, side: float = 0.5) -> Tensor:
    """Square crops (N,3,CROP,CROP) around (N,2) pixel centres; ``side`` in image sides, borders replicated."""
    height, width = image.shape[-2:]
    axis = (torch.arange(CROP, device=image.device) + 0.5) / CROP - 0.5
    center = center.to(image)
    x = center[:, 0, None] + axis * side * width
    y = center[:, 1, None] + axis * side * height
    grid_x = (2 * x / width - 1)[:, None, :].expand(-1, CROP, -1)
    grid_y = (2 * y / height - 1)[:, :, None].expand(-1, -1, CROP)
    grid = torch.stack([grid_x, grid_y], dim=-1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


class InsertionJudge(ModelMixin, ConfigMixin):
    """A small classifier that names the shape, colour and texture in a crop; trained on ground truth only.

    Args:
        widths: Channels of the three convolution stages.
        classes: Number of shapes, colours and textures.
    """

    @register_to_config
    def __init__(self, widths: tuple[int, ...] = (32, 64, 96), classes: tuple[int, ...] = (6, 8, 3)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for width in widths:
            layers += [nn.Conv2d(previous, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU()]
            previous = width
        self.trunk = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(previous * (CROP // 2 ** len(widths)) ** 2, 128), nn.ReLU()
        )
        self.heads = nn.ModuleList(nn.Linear(128, n) for n in classes)

    def forward(self, crops: Tensor) -> list[Tensor]:
        """Logits for shape, colour and texture from crops (N,3,CROP,CROP) in [-1,1]."""
        features = self.trunk(crops)
        return [head(features) for head in self.heads]

    @torch.no_grad()
    def judge(self, source: Tensor, result: Tensor) -> tuple[Tensor, Change]:
        """Labels (N,3) of what was inserted, -1 where nothing was, and the change itself."""
        change = find_change(source, result)
        logits = self(crop_around(result, change.center))
        labels = torch.stack([head.argmax(-1) for head in logits], dim=1)
        labels[~change.found] = -1
        return labels, change


class InsertionScore(Metric):
    """Fractions of insertions that came out right, by the judge.

    ``compute`` returns "shape", "color", "texture" and "all" (right label at the changed place), "found" (something
    was inserted), "single" (one thing, not several), "clear" (no existing thing covered by a tenth or more),
    and "background_psnr"/"background_psnr_pooled" outside the place of the insertion, in dB.

    Args:
        judge: A trained judge.
        **kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    right: Tensor
    count: Tensor

    NAMES = ("shape", "color", "texture", "all", "found", "single", "clear")

    def __init__(self, judge: InsertionJudge, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.judge = judge.eval()
        self.background = BackgroundPreservation()
        self.add_state("right", default=torch.zeros(len(self.NAMES)), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, source: Tensor, result: Tensor, label: Tensor, others: Tensor) -> None:
        """Add a batch.

        Args:
            source: Scenes before, (N,3,H,W) in [-1,1].
            result: Scenes after, (N,3,H,W) in [-1,1].
            label: What should have been inserted, (N,3).
            others: Things already there, (N,1,H,W) in {0,1}.
        """
        labels, change = self.judge.judge(source, result)
        right = labels == label
        covered = (change.mask & others.bool()).sum((1, 2, 3)) / others.sum((1, 2, 3)).clamp(min=1)
        flags = [*right.unbind(1), right.all(1), change.found, change.blobs == 1, covered < 0.1]
        self.right += torch.stack([flag.float().sum() for flag in flags])
        self.count += len(label)
        self.background.update(source, result, around(change, source.shape[-1]))

    def compute(self) -> dict[str, float]:
        """All figures; fractions in [0,1]."""
        fractions = dict(zip(self.NAMES, (self.right / self.count).tolist(), strict=True))
        background = self.background.compute()
        return fractions | {
            "background_psnr": float(background["psnr"]),
            "background_psnr_pooled": float(background["psnr_pooled"]),
        }

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.background.reset()


def around(change: Change, size: int, radius: float = 0.26) -> Tensor:
    """Square (N,1,size,size) bool around each found change, ``radius`` in image sides; empty where none was found."""
    axis = torch.arange(size) + 0.5
    center = change.center.cpu()
    near_x = (axis - center[:, 0, None]).abs() <= radius * size
    near_y = (axis - center[:, 1, None]).abs() <= radius * size
    return (near_y[:, :, None] & near_x[:, None, :] & change.found[:, None, None])[:, None]
