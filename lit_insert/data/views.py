"""Triplets by (number, epoch), and the versions of them that can be computed ahead of training."""

from abc import ABC, abstractmethod

import torch

from lit_insert.data.loading import sample_generator
from lit_insert.data.transforms import TripletTransform
from lit_insert.data.triplets import Triplet, TripletSample


class TripletViews(ABC):
    """What sets of stored triplets share; a subclass has ``triplet(index, generator)``.

    A training set whose samples are at most flipped has one or two versions of each, its *views*, which a feature
    cache can hold. With random crops or changes of the reference every epoch differs.

    Attributes:
        transform: Makes tensors.
        seed: Seed of the augmentation.
        train: Augment; the random numbers depend on (seed, epoch, index) only.
    """

    transform: TripletTransform
    seed: int
    train: bool

    @abstractmethod
    def triplet(self, index: int, generator: torch.Generator | None = None) -> Triplet:
        """One triplet as stored."""

    @property
    def endless(self) -> str:
        """Why the versions of a sample cannot be counted; empty if they can."""
        if self.train and self.transform.augment is True:
            return "training crops scenes at random; set data's augment to flip (or false)"
        if self.train and self.transform.augment_reference:
            return "training changes references at random; set data's augment_reference to false"
        return ""

    @property
    def views(self) -> int:
        """Number of versions of each sample: 1, 2 with flips, 0 if every epoch differs."""
        if self.endless:
            return 0
        return 2 if self.train and self.transform.augment == "flip" else 1

    def view(self, index: int, view: int = 0) -> TripletSample:
        """One version of a sample: 0 as stored, 1 flipped."""
        return self.transform(self.triplet(index), flip=view == 1)

    def view_of(self, index: int, epoch: int) -> int:
        """Which version an epoch uses."""
        if self.views < 2:
            return 0
        return int(torch.randint(2, (), generator=sample_generator(self.seed, epoch, index)))

    def sample(self, index: int, epoch: int) -> TripletSample:
        """One triplet as tensors."""
        if self.views:
            return self.view(index, self.view_of(index, epoch))
        generator = sample_generator(self.seed, epoch, index)
        return self.transform(self.triplet(index, generator), generator)
