"""Insertion triplets for training: PIPE from parquet or the hub, or a folder of triplets."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from torch.utils.data import default_collate

from lit_insert.data.crops import Background, CropRules
from lit_insert.data.folder import TripletFolder, metadata_file
from lit_insert.data.loading import ResumableLoader, processed_batches, resumable_loader
from lit_insert.data.parquet_join import parquet_files
from lit_insert.data.pipe_rows import (
    INSTRUCTIONS,
    MASK_COLUMNS,
    SOURCE_COLUMNS,
    PipeTriplets,
    aligned,
    joined,
    open_rows,
)
from lit_insert.data.transforms import TripletTransform, clip_processor
from lit_insert.data.triplets import PipeTripletBatch, collate_triplets
from lit_insert.errors import InputError

log = logging.getLogger(__name__)
Triplets = TripletFolder | PipeTriplets


class PipeTripletDataModule(pl.LightningDataModule):
    """Insertion triplets from PIPE (with ``masks``) or from a folder of triplets (without).

    The order and every augmentation are pure functions of (seed, epoch), so a run that is resumed in the
    middle of an epoch goes on with the samples it would have seen, on any number of workers. Samples that
    cannot be read are left out, named once and counted.

    PIPE's own train split is divided into training and validation by a hash of (dataset, img_id); its test
    split stays the test split.

    Example::

        data = PipeTripletDataModule("data/people", batch_size=8, size=256)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))

    Args:
        path: A folder with train/, val/ and test/ that hold metadata.csv; or, with ``masks``, PIPE as a
            folder of parquet files or a hub id such as "paint-by-inpaint/PIPE".
        masks: PIPE_Masks, as a folder of parquet files or a hub id such as "paint-by-inpaint/PIPE_Masks".
        batch_size: Samples per step and rank.
        num_workers: Reading processes per rank; 0 reads in the training process.
        size: Side of scene, target and mask in pixels.
        object_size: Side of the reference picture in pixels, where ``image_processor`` does not say.
        image_processor: Folder or hub id of the CLIP image processor; CLIP's own values if not given.
        seed: Seed of the order and the augmentation.
        augment: Crop (90-100 %) and flip scene and target together in training; "flip" only flips.
        augment_reference: Flip, rotate, crop, recolour and blur the reference in training, against
            copy-paste.
        streaming: Read the parquet files in place, row group by row group, instead of a memory-mapped copy.
        shuffle_window: Rows shuffled together when streaming, per worker; about 0.1 MB each for PIPE.
        val_fraction: Part of PIPE's train pictures held out for validation; 0 validates on its test split.
        drop_last: Leave out the last, smaller batch in training.
        max_broken_fraction: Largest fraction of the samples that may be unreadable before training stops.
        square: Widen the cut-out object of PIPE to a square where the scene has room.
        background: Around the cut-out object of PIPE: keep, white or grey.
        min_side: PIPE objects with a shorter side in pixels are left out.
        min_area: PIPE objects covering a smaller fraction of the scene are left out.
        max_area: PIPE objects covering a larger fraction are left out.
        revision: Revision of hub data sets.
        cache_dir: Where hub data and memory-mapped copies are kept.
    """

    def __init__(
        self,
        path: str,
        masks: str | None = None,
        batch_size: int = 16,
        num_workers: int = 4,
        size: int = 256,
        object_size: int = 224,
        image_processor: str | None = None,
        seed: int = 0,
        augment: bool | Literal["flip"] = True,
        augment_reference: bool = True,
        streaming: bool = False,
        shuffle_window: int = 1000,
        val_fraction: float = 0.01,
        drop_last: bool = False,
        max_broken_fraction: float = 0.02,
        square: bool = True,
        background: Background = "keep",
        min_side: int = 32,
        min_area: float = 0.005,
        max_area: float = 0.60,
        revision: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if not 0 <= val_fraction < 1:
            raise InputError(f"val_fraction is {val_fraction}; give 0 or more, less than 1")
        if streaming and masks is None:
            raise InputError("streaming is for PIPE parquet; give masks too, or set streaming: false")
        self.path, self.masks, self.batch_size, self.num_workers = path, masks, batch_size, num_workers
        self.seed, self.drop_last, self.max_broken_fraction = seed, drop_last, max_broken_fraction
        self.streaming, self.shuffle_window, self.val_fraction = streaming, shuffle_window, val_fraction
        self.size, self.object_size, self.image_processor = size, object_size, image_processor
        self.augment, self.augment_reference = augment, augment_reference
        self.rules = CropRules(
            square=square, background=background, min_side=min_side, min_area=min_area, max_area=max_area
        )
        self.revision, self.cache_dir = revision, cache_dir
        self.train_view: Callable[[Any], Any] | None = None  # what stands in for the training set, if anything
        self._transform: TripletTransform | None = None
        self._datasets: dict[str, Triplets | None] = {}
        self._loaders: dict[str, ResumableLoader[PipeTripletBatch]] = {}

    @property
    def transform(self) -> TripletTransform:
        """The one transform of every split; its ``processor`` is the CLIP preprocessing to export."""
        if self._transform is None:
            processor = clip_processor(self.object_size, self.image_processor)
            self._transform = TripletTransform(self.size, processor, self.augment, self.augment_reference)
        return self._transform

    def prepare_data(self) -> None:
        """Download or convert what is not yet in the cache; on one process per machine."""
        if self.masks is None:
            self._root()
        elif not self.streaming:
            here = Path(self.path)
            for split in ("train", "test"):
                if not here.is_dir() or parquet_files(here, split, missing_ok=True):
                    self._open(split)

    def setup(self, stage: str) -> None:
        """Open the splits of a stage and check their metadata."""
        for split in {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",)):
            self.dataset(split)

    def _root(self) -> Path:
        root = Path(self.path)
        if not root.is_dir():
            if self.path.count("/") != 1 or self.path.startswith((".", "/", "~")):
                raise InputError(f"{self.path}: no such folder")
            from huggingface_hub import snapshot_download

            root = Path(
                snapshot_download(self.path, repo_type="dataset", revision=self.revision, cache_dir=self.cache_dir)
            )
        if not any(metadata_file(root / s) for s in ("train", "val", "test")):
            raise InputError(
                f"{self.path}: no train/metadata.csv there; prepare it with data/prepare_pipe.py, "
                "or give masks to read PIPE parquet"
            )
        return root

    def _open(self, split: str) -> tuple[Any, Any]:
        assert self.masks is not None
        options: dict[str, Any] = {
            "streaming": self.streaming,
            "revision": self.revision,
            "cache_dir": self.cache_dir,
        }
        rows = open_rows(self.path, split, SOURCE_COLUMNS, INSTRUCTIONS, **options)
        return rows, open_rows(self.masks, split, MASK_COLUMNS, **options)

    def dataset(self, split: str) -> Triplets | None:
        """The triplets of "train", "val" or "test"; None if a folder has no "val" split.

        Raises:
            InputError: If the data is missing or its metadata is wrong.
        """
        if split not in self._datasets:
            self._datasets[split] = self._folder(split) if self.masks is None else self._pipe(split)
        return self._datasets[split]

    def _folder(self, split: str) -> TripletFolder | None:
        folder = self._root() / split
        if split == "val" and metadata_file(folder) is None:
            log.warning("%s: no val/ folder, so nothing is validated", self.path)
            return None
        return TripletFolder(folder, self.transform, self.seed, train=split == "train")

    def _pipe(self, split: str) -> PipeTriplets:
        stored = "test" if split == "test" or (split == "val" and not self.val_fraction) else "train"
        rows, masks = self._open(stored)
        if self.streaming and not Path(self.path).is_dir():
            if self.val_fraction and stored == "train":
                raise InputError(
                    "val_fraction needs the keys of all rows, which streaming from the hub does not read; "
                    "set val_fraction: 0 (validates on the test split) or streaming: false"
                )
            pairs = aligned(rows, masks, self.path)
        else:
            low, high = (0.0, 1.0) if stored == "test" else (self.val_fraction, 1.0)
            if split == "val" and stored == "train":
                low, high = 0.0, self.val_fraction
            pairs, without = joined(rows, masks, low, high)
            if without:
                log.warning("%s: %d rows of %s have no mask and are left out", self.path, without, stored)
        return PipeTriplets(rows, masks, pairs, self.transform, self.rules, self.seed, train=split == "train")

    def _loader(self, split: str) -> Any:
        data = self.dataset(split)
        if data is None:
            return []
        train = split == "train"
        shuffle = train and not getattr(self.trainer, "overfit_batches", 0)
        order = None
        if isinstance(data, PipeTriplets):
            order = data.order(shuffle, self.shuffle_window, self.num_workers)
        stand_in = self.train_view if train else None
        loader = resumable_loader(
            stand_in(data) if stand_in else data,
            self.batch_size,
            self.num_workers,
            self.seed,
            shuffle=shuffle,
            drop_last=train and self.drop_last,
            collate_fn=default_collate if stand_in else collate_triplets,
            order=order,
            max_broken_fraction=self.max_broken_fraction,
            processed=partial(processed_batches, self) if train else None,
        )
        self._loaders[split] = loader
        return loader

    def train_dataloader(self) -> Any:
        """Shuffled, augmented triplets; resumes exactly."""
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """Held-out triplets, unchanged and in order; an empty list if there are none."""
        return self._loader("val")

    def test_dataloader(self) -> Any:
        """The test triplets, unchanged and in order."""
        return self._loader("test")

    def predict_dataloader(self) -> Any:
        """The test triplets, for writing pictures."""
        return self._loader("test")

    def teardown(self, stage: str) -> None:
        """Say how many samples were left out, and why."""
        for split, loader in self._loaders.items():
            if loader.broken:
                names = ", ".join(list(loader.broken)[:10])
                log.warning("%s: %d samples could not be read: %s", split, len(loader.broken), names)
            if loader.skipped:
                reasons = [*loader.skipped.values()]
                counts = ", ".join(f"{reasons.count(r)} {r}" for r in sorted(set(reasons)))
                log.info("%s: left out by the crop rules: %s", split, counts)
        self._loaders.clear()
