"""What the data modules of drawn scenes have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import Dataset

from lit_insert.data.loading import ResumableLoader, processed_batches, resumable_loader


class ProceduralDataModule(pl.LightningDataModule, ABC):
    """Loaders over scenes that are drawn on demand, training ones in an order that resumes.

    Args:
        batch_size: Samples per step and rank.
        num_workers: Loader processes; drawing costs under a millisecond a sample, so 0 is fine.
        lengths: Samples of "train", "val" and "test"; predict takes the test samples.
        seed: Of the order.
    """

    def __init__(self, batch_size: int, num_workers: int, lengths: dict[str, int], seed: int) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.lengths, self.seed = batch_size, num_workers, lengths, seed
        self.train_view: Callable[[Any], Any] | None = None  # what stands in for the training set, if anything

    @abstractmethod
    def dataset(self, split: str) -> Dataset[dict[str, Any]]:
        """The scenes of one split."""

    def _loader(self, split: str) -> ResumableLoader[dict[str, Any]]:
        training = split == "train"
        data: Any = self.dataset(split)
        return resumable_loader(
            self.train_view(data) if training and self.train_view else data,
            self.batch_size,
            self.num_workers,
            self.seed,
            shuffle=training,
            processed=partial(processed_batches, self) if training else None,
        )

    def train_dataloader(self) -> ResumableLoader[dict[str, Any]]:
        """Training samples, in an order that resumes."""
        return self._loader("train")

    def val_dataloader(self) -> ResumableLoader[dict[str, Any]]:
        """Held-out samples for choosing."""
        return self._loader("val")

    def test_dataloader(self) -> ResumableLoader[dict[str, Any]]:
        """Held-out samples for the final figure."""
        return self._loader("test")

    def predict_dataloader(self) -> ResumableLoader[dict[str, Any]]:
        """The test samples, for writing pictures."""
        return self._loader("test")
