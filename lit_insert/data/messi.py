"""Single pictures for training generative models: folders, parquet tables, drawn scenes."""

import logging
from functools import partial
from typing import Any

import lightning.pytorch as pl

from lit_insert.data.image_folder import ImageFolder
from lit_insert.data.image_parquet import ParquetImages
from lit_insert.data.image_scenes import SceneImages
from lit_insert.data.image_source import DrawnImages, DrawnSource, ImageSource, StoredImages, StoredSource
from lit_insert.data.loading import ResumableLoader, processed_batches, resumable_loader
from lit_insert.errors import InputError

__all__ = ["ImageFolder", "MessiDataModule", "ParquetImages", "SceneImages"]
log = logging.getLogger(__name__)


class MessiDataModule(pl.LightningDataModule):
    """Pictures as squares, with class labels where the source has them.

    A batch has ``image``, float32 (N,3,S,S) in [-1,1], ``id``, N strings, and with labels ``label``, int64 (N,).
    Order, crops and flips are pure functions of (seed, epoch), so a run that is resumed in the middle of an epoch goes
    on with the samples it would have seen, on any number of workers. Pictures that cannot be read are left out, named
    once and counted.

    A picture is shrunk by averaging halves, then bicubically until its shorter side is S, and cut to the square in the
    middle.

    Example::

        data = MessiDataModule(ImageFolder("faces", "train", labels="prefix"), image_size=64, batch_size=32)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))

    Args:
        train: Pictures to train on: ImageFolder, ParquetImages or SceneImages.
        val: Pictures to choose by; null for none. Its classes are numbered as the training pictures' are.
        test: Pictures for the final figure and for prediction; those of val if null.
        image_size: Side S of the squares in pixels.
        batch_size: Samples per step and rank.
        num_workers: Reading processes per rank; 0 reads in the training process.
        seed: Seed of order, crops and flips.
        random_crop: In training, cut a random window of 80-100 % of the shorter side instead of the middle.
        flip: In training, mirror half of the pictures of files; drawn scenes are left as they are.
        drop_last: Leave out the last, smaller batch in training.
        cache_mb: Megabytes of decoded pictures kept in memory by each reading process and split; 0 for none.
        max_broken_fraction: Largest fraction of the pictures that may be unreadable before training stops.
    """

    def __init__(
        self,
        train: ImageSource,
        val: ImageSource | None = None,
        test: ImageSource | None = None,
        image_size: int = 64,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        random_crop: bool = False,
        flip: bool = True,
        drop_last: bool = False,
        cache_mb: float = 0.0,
        max_broken_fraction: float = 0.02,
    ) -> None:
        super().__init__()
        if image_size < 1:
            raise InputError(f"image_size is {image_size}; give 1 or more")
        self.save_hyperparameters(ignore=["train", "val", "test"], logger=False)
        self._sources = {"train": train, "val": val, "test": test or val}
        self.image_size, self.batch_size, self.num_workers, self.seed = image_size, batch_size, num_workers, seed
        self.random_crop, self.flip, self.drop_last = random_crop, flip, drop_last
        self.cache_mb, self.max_broken_fraction = cache_mb, max_broken_fraction
        self._loaders: dict[str, ResumableLoader[dict[str, Any]]] = {}

    @property
    def classes(self) -> list[str]:
        """Names of the classes by id; empty if the pictures have no labels."""
        return self.source("train").classes  # type: ignore[union-attr]

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.classes)

    def source(self, split: str) -> ImageSource | None:
        """The opened source of "train", "val" or "test".

        Raises:
            InputError: If its pictures are missing, or its classes are not among those of the training pictures.
        """
        source = self._sources[split]
        if source is not None:
            source.open()
            if split != "train" and source is not self._sources["train"]:
                source.use_classes(self.classes)
        return source

    def prepare_data(self) -> None:
        """Download or convert what is not yet in the cache; on one process per machine."""
        for source in self._sources.values():
            if source is not None:
                source.prepare()

    def setup(self, stage: str) -> None:
        """Open the sources of a stage; classes come from the training pictures in every stage."""
        for split in {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",)):
            self.source(split)

    def state_dict(self) -> dict[str, Any]:
        """What the class ids mean, for the checkpoint."""
        return {"classes": self.classes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that class ids mean what they meant.

        Raises:
            InputError: If they do not.
        """
        if state_dict["classes"] != self.classes:
            raise InputError(
                f"the run was trained on classes {', '.join(state_dict['classes']) or 'none'}, the data now has "
                f"{', '.join(self.classes) or 'none'}; set the source's classes"
            )

    def dataset(self, split: str) -> StoredImages | DrawnImages | None:
        """The tensors of one split; None if there is no such split."""
        source = self.source(split)
        if source is None:
            return None
        if isinstance(source, DrawnSource):
            return DrawnImages(source, self.image_size, self.cache_mb)
        if not isinstance(source, StoredSource):
            raise TypeError(f"{type(source).__name__} is neither a StoredSource nor a DrawnSource")
        train = split == "train"
        return StoredImages(
            source, self.image_size, train and self.random_crop, train and self.flip, self.seed, self.cache_mb
        )

    def _loader(self, split: str) -> Any:
        data = self.dataset(split)
        if data is None:
            return []
        train = split == "train"
        self._loaders[split] = resumable_loader(
            data,
            self.batch_size,
            self.num_workers,
            self.seed,
            shuffle=train and not getattr(self.trainer, "overfit_batches", 0),
            drop_last=train and self.drop_last,
            max_broken_fraction=self.max_broken_fraction,
            processed=partial(processed_batches, self) if train else None,
        )
        return self._loaders[split]

    def train_dataloader(self) -> Any:
        """Shuffled, cropped and flipped pictures; resumes exactly."""
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """Held-out pictures, in order; an empty list if there are none."""
        return self._loader("val")

    def test_dataloader(self) -> Any:
        """Test pictures, in order."""
        return self._loader("test")

    def predict_dataloader(self) -> Any:
        """The test pictures."""
        return self._loader("test")

    def teardown(self, stage: str) -> None:
        """Say how many pictures were left out."""
        for split, loader in self._loaders.items():
            if loader.broken:
                names = ", ".join(list(loader.broken)[:10])
                log.warning("%s: %d pictures could not be read: %s", split, len(loader.broken), names)
        self._loaders.clear()
