"""Score masks against the truth at the photos' own size, beside controls that have learnt nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from lit_insert.data.loading import BrokenSample
from lit_insert.data.mask_source import IGNORE, MaskedPicture, MaskSource
from lit_insert.mask_decoder.pipeline import MaskOutput
from lit_insert.metrics.mask import ImageIoU, mask_metrics

_SAME = 12  # distance in Lab below which colours count as one
Predict = Callable[[list[Image.Image]], MaskOutput]


@dataclass
class MaskEvaluation:
    """How masks fit.

    Attributes:
        scores: "iou", "image_iou", "dice", "boundary_f" (2 pixels of the photo) and "presence_accuracy".
        image_iou: Of each picture, by its number in the source.
        broken: Pictures that could not be read, by id.
    """

    scores: dict[str, float]
    image_iou: dict[int, float]
    broken: list[str] = field(default_factory=list)

    def best(self, count: int) -> list[int]:
        """Numbers of the pictures whose masks fit best, the best first."""
        return sorted(self.image_iou, key=lambda i: -self.image_iou[i])[:count]

    def worst(self, count: int) -> list[int]:
        """Numbers of the pictures whose masks fit worst, the worst first."""
        return sorted(self.image_iou, key=lambda i: self.image_iou[i])[:count]


def evaluate_masks(
    predict: Predict, source: MaskSource, *, batch_size: int = 16, progress: Callable[[int], None] | None = None
) -> MaskEvaluation:
    """Compare predicted masks with true ones.

    Args:
        predict: Maps photos to masks of their size, such as a `MaskPipeline`.
        source: Photos and true masks.
        batch_size: Photos handed over at once.
        progress: Called with the number of photos done after every batch.
    """
    metrics, single = mask_metrics(), ImageIoU()
    ious: dict[int, float] = {}
    broken: list[str] = []
    for start in range(0, len(source), batch_size):
        numbers = range(start, min(start + batch_size, len(source)))
        pictures: dict[int, MaskedPicture] = {}
        for i in numbers:
            try:
                pictures[i] = source.picture(i)
            except BrokenSample as error:
                broken.append(error.name)
        if pictures:
            found = predict([photo(p) for p in pictures.values()])
            for (i, picture), mask, presence in zip(pictures.items(), found.masks, found.presence, strict=True):
                own = torch.from_numpy(np.array(mask))[None, None] / 255
                truth = picture.mask[None, None].float()
                metrics.update(probability=own, mask=truth, presence=torch.tensor([presence]))
                ious[i] = float(single.scores(own, truth))
        if progress is not None:
            progress(len(numbers))
    return MaskEvaluation({k: round(float(v), 5) for k, v in metrics.compute().items()}, ious, broken)


def photo(picture: MaskedPicture) -> Image.Image:
    """The picture alone."""
    return Image.fromarray(picture.image.permute(1, 2, 0).contiguous().numpy())


def picture_rows(
    predict: Predict, source: MaskSource, evaluation: MaskEvaluation, numbers: Sequence[int]
) -> list[list[Any]]:
    """For a report: id and IoU, photo, true mask, found mask, and where they differ (false alarms red, misses blue)."""
    rows = []
    for i in numbers:
        picture = source.picture(i)
        image, truth = photo(picture), picture.mask.numpy()
        mask = predict([image]).mask
        shown = Image.fromarray(np.where(truth == IGNORE, 128, truth * 255).astype(np.uint8))
        text = f"{picture.id}: {evaluation.image_iou[i]:.3f}"
        rows.append([text, image, shown, mask, differences(image, np.asarray(mask) > 0, truth)])
    return rows


def differences(image: Image.Image, found: np.ndarray, truth: np.ndarray) -> Image.Image:
    """The photo in dark grey, hits brightened, false alarms red, misses blue.

    Args:
        image: The photo.
        found: Predicted mask, bool (H,W).
        truth: True mask, (H,W) in {0,1}, 255 where it does not matter.
    """
    pixels = np.repeat(np.asarray(image.convert("L"))[..., None] * np.float32(0.4), 3, axis=2)
    for where, colour in (
        (found & (truth == 1), (255, 255, 255)),
        (found & (truth == 0), (255, 40, 40)),
        (~found & (truth == 1), (60, 120, 255)),
    ):
        pixels[where] = 0.35 * pixels[where] + 0.65 * np.array(colour, np.float32)
    return Image.fromarray(pixels.round().astype(np.uint8))


def nothing(photos: list[Image.Image]) -> MaskOutput:
    """Control: empty masks."""
    return _output([np.zeros((p.height, p.width), bool) for p in photos])


def unlike_border(photos: list[Image.Image]) -> MaskOutput:
    """Control: what differs in colour from the picture's border.

    The distance in CIE Lab to the nearest of eight colours that the border has most, cut at the threshold that
    parts the distances best (Otsu 1979), but not below 12.
    """
    masks = []
    for picture in photos:
        lab = cv2.cvtColor(np.asarray(picture.convert("RGB")).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        border = np.concatenate([lab[0], lab[-1], lab[:, 0], lab[:, -1]])
        rough, counts = np.unique((border / _SAME).round(), axis=0, return_counts=True)
        usual = rough[np.argsort(-counts, kind="stable")[:8]] * _SAME
        distance = np.min([np.linalg.norm(lab - colour, axis=2) for colour in usual], axis=0)
        scaled = np.clip(distance * 2, 0, 255).astype(np.uint8)
        threshold, _ = cv2.threshold(scaled, 0, 1, cv2.THRESH_OTSU)
        masks.append(scaled > max(threshold, 2 * _SAME))
    return _output(masks)


def _output(masks: list[np.ndarray]) -> MaskOutput:
    return MaskOutput(
        masks=[Image.fromarray(m.astype(np.uint8) * 255) for m in masks],
        probabilities=[m.astype(np.float32) for m in masks],
        presence=[float(m.any()) for m in masks],
    )
