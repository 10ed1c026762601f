"""Where single pictures come from, and how a training loop sees them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor

from lit_insert.data.loading import sample_generator
from lit_insert.data.squares import centre_square, halve, largest_side, random_square, to_bytes
from lit_insert.data.transforms import to_signed
from lit_insert.errors import InputError


class ImageSource(ABC):
    """A numbered set of pictures with or without class labels: a `StoredSource` or a `DrawnSource`.

    Constructing one reads nothing; `open` does, once. Class ids count from 0 in the order of `classes`.
    """

    def prepare(self) -> None:  # noqa: B027 - a hook
        """Download or convert, once per machine; nothing by default."""

    def open(self) -> None:  # noqa: B027 - a hook
        """Find out what there is; a second call does nothing.

        Raises:
            InputError: If the pictures or their labels are not there.
        """

    @property
    def classes(self) -> list[str]:
        """Names of the classes by id; empty if pictures have no labels. Needs `open`."""
        return []

    def use_classes(self, classes: list[str]) -> None:
        """Number the classes as another source does.

        Raises:
            InputError: If this source has other classes.
        """
        if self.classes != classes:
            raise InputError(f"classes of one split are {_some(classes)}, of another {_some(self.classes)}")

    @abstractmethod
    def __len__(self) -> int:
        """Number of pictures."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Unique name of a picture."""


class StoredSource(ImageSource):
    """Pictures that lie somewhere, to be cropped and flipped."""

    @abstractmethod
    def label(self, index: int) -> int:
        """Class id; only where `classes` is not empty."""

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """One picture as stored, upright, RGB.

        Raises:
            BrokenSample: If it cannot be read.
        """


class DrawnSource(ImageSource):
    """Pictures that are drawn on demand, each as it should be."""

    @abstractmethod
    def draw(self, indices: Sequence[int], size: int) -> tuple[Tensor, list[int]]:
        """Drawn pictures, uint8 (n,3,size,size), and their class ids (whatever they are where there are no labels)."""


Source = TypeVar("Source", bound=ImageSource)


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''} ({len(names)})" if names else "none"


class _Store:
    """Keeps what fits into a number of bytes; what came first stays."""

    def __init__(self, megabytes: float) -> None:
        self.left = int(megabytes * 2**20)
        self.kept: dict[int, Any] = {}

    def put(self, index: int, value: Any, size: int) -> None:
        if size <= self.left and index not in self.kept:
            self.kept[index] = value
            self.left -= size


class _Images(Generic[Source]):
    def __init__(self, source: Source, size: int, cache_mb: float) -> None:
        self.source, self.size = source, size
        self.labelled = bool(source.classes)
        self.store = _Store(cache_mb)

    def __len__(self) -> int:
        return len(self.source)

    def _item(self, index: int, pixels: Tensor, label: int) -> dict[str, Any]:
        item: dict[str, Any] = {"image": to_signed(pixels), "id": self.source.name(index)}
        if self.labelled:
            item["label"] = label
        return item


class StoredImages(_Images[StoredSource]):
    """Stored pictures as tensors.

    Args:
        source: An opened source.
        size: Side of the square in pixels.
        random_crop: Draw the window, 80-100 % of the shorter side, instead of taking the middle.
        flip: Mirror half of the pictures.
        seed: The random numbers depend on (seed, epoch, index) only.
        cache_mb: Megabytes of decoded pictures that are kept, already shrunk.
    """

    def __init__(
        self,
        source: StoredSource,
        size: int,
        random_crop: bool = False,
        flip: bool = False,
        seed: int = 0,
        cache_mb: float = 0.0,
    ) -> None:
        super().__init__(source, size, cache_mb)
        self.random_crop, self.flip, self.seed = random_crop, flip, seed

    def _read(self, index: int) -> Image.Image:
        """The picture as far as it is the same in every epoch."""
        if index in self.store.kept:
            return self.store.kept[index]
        image = self.source.picture(index)
        image = halve(image, largest_side(self.size)) if self.random_crop else centre_square(image, self.size)
        self.store.put(index, image, 3 * image.width * image.height)
        return image

    def sample(self, index: int, epoch: int) -> dict[str, Any]:
        """One picture: ``image`` float32 (3,S,S) in [-1,1], ``id`` and, where there are labels, ``label``."""
        generator = sample_generator(self.seed, epoch, index)
        image = self._read(index)
        if self.random_crop:
            image = random_square(image, self.size, generator)
        pixels = to_bytes(image)
        if self.flip and float(torch.rand((), generator=generator)) < 0.5:
            pixels = pixels.flip(-1)
        return self._item(index, pixels, self.source.label(index) if self.labelled else 0)


class DrawnImages(_Images[DrawnSource]):
    """Drawn pictures as tensors, a batch at a time; they are the same in every epoch and are not changed.

    Args:
        source: An opened source.
        size: Side in pixels.
        cache_mb: Megabytes of pictures that are kept.
    """

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        new: dict[int, tuple[Tensor, int]] = {}
        if missing := [i for i in indices if i not in self.store.kept]:
            new = dict(zip(missing, zip(*self.source.draw(missing, self.size), strict=True), strict=True))
        for index, (pixels, label) in new.items():
            self.store.put(index, (pixels.clone(), label), pixels.numel())
        return [self._item(i, *(new[i] if i in new else self.store.kept[i])) for i in indices]
