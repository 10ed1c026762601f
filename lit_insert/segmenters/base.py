"""The one interface of everything that finds things by their names, and what it returns."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import cv2
import numpy as np
from PIL import Image

from lit_insert.errors import InputError
from lit_insert.images import Picture, as_pictures, flatten_alpha
from lit_insert.rle import decode_rle, encode_rle

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Instance:
    """One thing that was found; its mask is kept as run lengths, a few kilobytes instead of the picture's size.

    Attributes:
        rle: COCO's compressed run lengths (`lit_insert.rle`).
        score: How sure the model is, in [0,1].
        box: Tight box of the mask: x, y, width, height in whole pixels.
        area: Pixels inside the mask, at least 1.
        model_box: The box that the model itself gave: left, top, right, bottom in pixels, clipped to the picture.
    """

    rle: dict[str, Any]
    score: float
    box: tuple[int, int, int, int]
    area: int
    model_box: Box

    @property
    def mask(self) -> np.ndarray:
        """(H,W) bool, decoded anew each time."""
        return decode_rle(self.rle["counts"], self.rle["size"])

    @classmethod
    def from_mask(cls, mask: np.ndarray, score: float, model_box: Box | None = None) -> "Instance | None":
        """An instance of a mask (H,W), or None if nothing is inside it."""
        inside: np.ndarray = np.ascontiguousarray(mask, dtype=np.uint8)
        area = int(np.count_nonzero(inside))
        if not area:
            return None
        x, y, width, height = (int(v) for v in cv2.boundingRect(inside))
        tight = (float(x), float(y), float(x + width), float(y + height))
        own = tight if model_box is None else _clip(model_box, *mask.shape)
        return cls(encode_rle(inside), float(score), (x, y, width, height), area, own)


@dataclass
class Instances:
    """What was found for one prompt.

    Attributes:
        prompt: The words.
        presence: How likely there is any such thing at all, in [0,1].
        found: The things, surest first.
    """

    prompt: str
    presence: float
    found: list[Instance] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[Instance]:
        return iter(self.found)


@dataclass
class Features:
    """A picture as a segmenter has encoded it, so that it looks at it once for any number of prompts.

    Attributes:
        size: (H, W) of the picture.
        data: The segmenter's own.
    """

    size: tuple[int, int]
    data: Any


@runtime_checkable
class Segmenter(Protocol):
    """Finds things by their names. Both methods take a picture, or what `encode` made of it."""

    name: str

    def to(self, device: "str | torch.device") -> "Segmenter":
        """Move to a device; returns the segmenter."""
        ...

    def encode(self, image: Picture, name: str | None = None) -> Features:
        """Look at a picture once.

        Args:
            image: PIL picture, file or tensor (3,H,W) in [-1,1].
            name: What the picture is called; only masks from files need it.
        """
        ...

    def heatmaps(self, image: Picture | Features, prompts: Sequence[str]) -> "Tensor":
        """Where each of the prompts is: float32 (P,H,W) in [0,1], at the picture's own size, on the CPU."""
        ...

    def instances(
        self,
        image: Picture | Features,
        prompts: Sequence[str],
        *,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        max_instances: int = 100,
    ) -> list[Instances]:
        """The single things that each of the prompts names.

        Args:
            image: A picture or its features.
            prompts: Short noun phrases.
            threshold: Things with a score above it are kept, in [0,1).
            mask_threshold: A pixel is inside where its probability is above it, in [0,1).
            max_instances: Most things for a prompt; the surest stay.

        Raises:
            InputError: If a prompt is empty or too long for the model, or a setting is out of range.
        """
        ...


def upright(image: Picture) -> Image.Image:
    """One picture in RGB, turned as its EXIF data say, alpha flattened over white.

    Raises:
        InputError: If it is unreadable or more than one.
    """
    pictures = as_pictures(image, "image")
    if len(pictures) != 1:
        raise InputError(f"image: give one picture at a time, not {len(pictures)}")
    return flatten_alpha(pictures[0])


def check_request(
    prompts: Sequence[str], threshold: float = 0.5, mask_threshold: float = 0.5, max_instances: int = 1
) -> list[str]:
    """The prompts with their spaces tidied.

    Raises:
        InputError: If they are no list of words, or a setting is out of range.
    """
    if isinstance(prompts, str):
        raise InputError(f"prompts: give a list, such as [{prompts!r}]")
    for name, value in (("threshold", threshold), ("mask_threshold", mask_threshold)):
        if not 0 <= value < 1:
            raise InputError(f"{name} is {value:g}; give a number from 0 to below 1")
    if max_instances < 1:
        raise InputError(f"max_instances is {max_instances}; give 1 or more")
    tidy = [" ".join(str(prompt).split()) for prompt in prompts]
    if not all(tidy):
        raise InputError("prompts: one of them is empty")
    return tidy


def chunks(prompts: Sequence[str], size: int) -> Iterator[list[str]]:
    """The prompts in lists of at most ``size``."""
    for start in range(0, len(prompts), size):
        yield list(prompts[start : start + size])


def best_first(candidates: Iterable[Instance | None], most: int) -> list[Instance]:
    """Candidates that are something, surest first; of equals the upper, then the left one."""
    kept = [c for c in candidates if c is not None]
    return sorted(kept, key=lambda c: (-c.score, c.box[1], c.box[0]))[:most]


def connected(heat: np.ndarray, threshold: float, mask_threshold: float, most: int) -> list[Instance]:
    """Instances of a heat map: its connected parts; parts that touch at a corner are one.

    A part's score is the largest value inside it. Things of one kind that touch become one.

    Args:
        heat: float32 (H,W) in [0,1].
        threshold: Parts with a score above it are kept.
        mask_threshold: Inside is where the map is above it.
        most: Most parts.
    """
    inside = (heat > mask_threshold).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    parts = []
    for number in range(1, count):
        x, y, width, height, _ = (int(v) for v in stats[number])
        window = np.s_[y : y + height, x : x + width]
        score = float(heat[window][labels[window] == number].max())
        if score > threshold:
            parts.append((score, number, window))
    parts.sort(key=lambda p: -p[0])
    found = []
    for score, number, window in parts[:most]:
        mask = np.zeros(heat.shape, bool)
        mask[window] = labels[window] == number
        found.append(Instance.from_mask(mask, score))
    return best_first(found, most)


def _clip(box: Box, height: int, width: int) -> Box:
    left, top, right, bottom = (float(v) for v in box)
    return (
        min(max(left, 0.0), float(width)),
        min(max(top, 0.0), float(height)),
        min(max(right, 0.0), float(width)),
        min(max(bottom, 0.0), float(height)),
    )
