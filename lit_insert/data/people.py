"""Pictures with masks of one class (people, say), for training a mask decoder."""

import logging
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from lit_insert.data.coco_masks import CocoMasks as CocoMasks  # so that configurations may name them without a path
from lit_insert.data.loading import (
    ResumableLoader,
    SkippedSample,
    processed_batches,
    resumable_loader,
    sample_generator,
)
from lit_insert.data.mask_check import MaskReport
from lit_insert.data.mask_folder import MaskFolder as MaskFolder
from lit_insert.data.mask_scenes import MaskScenes as MaskScenes
from lit_insert.data.mask_source import MaskBatch, MaskedPicture, MaskSample, MaskSource, collate_masks
from lit_insert.data.paired import Augmentation, PairedTransform, paste
from lit_insert.errors import InputError

log = logging.getLogger(__name__)


class MaskDataset:
    """A source's pictures as tensors, by (number, epoch).

    Args:
        source: The pictures.
        transform: Makes tensors.
        seed: Seed of the augmentation.
        train: Augment; the random numbers depend on (seed, epoch, index) only.
        cache_mb: Memory for decoded, shrunk pictures, of this process; 0 keeps none.
    """

    def __init__(
        self, source: MaskSource, transform: PairedTransform, seed: int = 0, train: bool = False, cache_mb: float = 0
    ) -> None:
        self.source, self.transform, self.seed, self.train = source, transform, seed, train
        self._room = 0 if source.drawn else int(cache_mb * 2**20)
        self._kept: dict[int, MaskedPicture] = {}

    def __len__(self) -> int:
        return len(self.source)

    def picture(self, index: int) -> MaskedPicture:
        """A picture, decoded and shrunk; from memory if it has been asked for before."""
        if index in self._kept:
            return self._kept[index]
        picture = self.transform.shrink(self.source.picture(index))
        size = picture.image.nbytes + picture.mask.nbytes
        if size <= self._room:
            self._room -= size
            self._kept[index] = picture
        return picture

    def sample(self, index: int, epoch: int) -> MaskSample:
        """One picture as tensors.

        Raises:
            BrokenSample: If it cannot be read.
        """
        if not self.train or self.transform.augmentation is None:
            return self.transform(self.picture(index))
        generator = sample_generator(self.seed, epoch, index)
        sample = self.transform(self.picture(index), generator)
        if torch.rand((), generator=generator) < self.transform.augmentation.paste:
            other = int(torch.randint(len(self), (), generator=generator))
            with suppress(SkippedSample):  # it is named and counted in its own turn
                sample = paste(sample, self.transform(self.picture(other), generator))
        return sample


class PeopleDataModule(pl.LightningDataModule):
    """Pictures with masks of one class, from files, COCO or procedural scenes.

    The order and every augmentation are pure functions of (seed, epoch), so a run that is resumed in the middle of
    an epoch goes on with the samples it would have seen, on any number of workers. Pictures that cannot be read are
    left out, named once and counted.

    Validation, test and prediction see the whole picture, letterboxed; `lit_insert.letterbox.restore` maps
    predictions back.

    Example::

        data = PeopleDataModule(
            MaskFolder("photos", "train", val_count=40), MaskFolder("photos", "val", val_count=40), image_size=128
        )
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))  # image (N,3,128,128), mask (N,1,128,128), id

    Args:
        train: Pictures to learn from.
        val: Pictures for validation; without, nothing is validated.
        test: Pictures for the final figure; those of ``val`` if not given.
        predict: Pictures to write masks for; those of ``test`` if not given.
        image_size: Side of the square canvas in pixels, or its [height, width].
        batch_size: Pictures per step and rank.
        num_workers: Reading processes per rank; 0 reads in the training process.
        seed: Seed of the order and the augmentation.
        augmentation: How training changes pictures; null for not at all.
        padding: What the mask says where the canvas shows nothing of the picture: ignore (255) or background (0).
        cache: Keep decoded pictures in memory, shrunk to what the canvas and the zoom need.
        cache_mb: Most memory for that, for each set and rank; reading processes share it out.
        check: Masks of each set to look at for mistakes before training starts; 0 for none.
        drop_last: Leave out the last, smaller batch in training.
        max_broken_fraction: Largest fraction of the pictures that may be unreadable before training stops.
    """

    def __init__(
        self,
        train: MaskSource | None = None,
        val: MaskSource | None = None,
        test: MaskSource | None = None,
        predict: MaskSource | None = None,
        image_size: int | tuple[int, int] = 256,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        augmentation: Augmentation | None = Augmentation(),  # noqa: B008 (frozen)
        padding: Literal["ignore", "background"] = "ignore",
        cache: bool = True,
        cache_mb: float = 1024,
        check: int = 256,
        drop_last: bool = False,
        max_broken_fraction: float = 0.02,
    ) -> None:
        super().__init__()
        test = val if test is None else test
        predict = test if predict is None else predict
        self.sources: dict[str, MaskSource | None] = {"train": train, "val": val, "test": test, "predict": predict}
        self.size: tuple[int, int] = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.batch_size, self.num_workers, self.seed, self.drop_last = batch_size, num_workers, seed, drop_last
        self.cache_mb = cache_mb * cache / max(1, num_workers)  # every process comes to see all pictures
        self.check, self.max_broken_fraction = check, max_broken_fraction
        self.transforms = {
            split: PairedTransform(self.size, augmentation if split == "train" else None, padding)
            for split in self.sources
        }
        self.reports: dict[str, MaskReport] = {}
        self._datasets: dict[str, MaskDataset] = {}
        self._loaders: dict[str, ResumableLoader[MaskBatch]] = {}
        shared = self._origins("train") & (self._origins("val") | self._origins("test"))
        if shared:
            raise InputError(
                f"{len(shared)} pictures are both in train and in val or test, such as {min(shared)}; "
                "give the same val_count and test_count everywhere, or other folders"
            )

    def _origins(self, split: str) -> set[str]:
        source = self.sources[split]
        return source.origins() if source is not None else set()

    def setup(self, stage: str) -> None:
        """Look at the masks of a stage's sets and warn about mistakes that they show.

        Raises:
            InputError: If a set that the stage needs is not given, or has no object in any mask.
        """
        for split in {"fit": ("train", "val"), "validate": ("val",)}.get(stage, (stage,)):
            source = self.sources.get(split)
            if source is None:
                if split == "train" or stage != "fit":
                    raise InputError(f"data.{split} is not given, so there is nothing to {stage}")
                log.warning("data.val is not given, so nothing is validated")
            elif self.check and split not in self.reports:
                report = source.check(self.check)
                if report is not None:
                    report.warn()
                    self.reports[split] = report

    def dataset(self, split: str) -> MaskDataset:
        """The pictures of "train", "val", "test" or "predict" as tensors.

        Raises:
            InputError: If the split is not given.
        """
        if split not in self._datasets:
            source = self.sources[split]
            if source is None:
                raise InputError(f"data.{split} is not given")
            train = split == "train"
            self._datasets[split] = MaskDataset(source, self.transforms[split], self.seed, train, self.cache_mb)
        return self._datasets[split]

    def _loader(self, split: str) -> Any:
        if self.sources[split] is None:
            return []
        train = split == "train"
        loader = resumable_loader(
            self.dataset(split),
            self.batch_size,
            self.num_workers,
            self.seed,
            shuffle=train and not getattr(self.trainer, "overfit_batches", 0),
            drop_last=train and self.drop_last,
            collate_fn=collate_masks,
            max_broken_fraction=self.max_broken_fraction,
            processed=partial(processed_batches, self) if train else None,
        )
        self._loaders[split] = loader
        return loader

    def train_dataloader(self) -> Any:
        """Shuffled, augmented pictures; resumes exactly."""
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """Letterboxed pictures in order; an empty list if there are none."""
        return self._loader("val")

    def test_dataloader(self) -> Any:
        """Letterboxed pictures in order."""
        return self._loader("test")

    def predict_dataloader(self) -> Any:
        """Letterboxed pictures in order."""
        return self._loader("predict")

    def teardown(self, stage: str) -> None:
        """Say which pictures could not be read."""
        for split, loader in self._loaders.items():
            if loader.broken:
                names = ", ".join(list(loader.broken)[:10])
                log.warning("%s: %d pictures could not be read: %s", split, len(loader.broken), names)
        self._loaders.clear()
