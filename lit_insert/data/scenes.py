"""Scenes as a dataset: insertion triplets with exact ground truth, made while they are read."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import CLIPImageProcessor

from lit_insert.data import world
from lit_insert.data.procedural import ProceduralDataModule
from lit_insert.data.transforms import clip_processor
from lit_insert.errors import InputError


class SceneDataset(Dataset[dict[str, Any]]):
    """Insertion triplets drawn from the procedural world.

    A sample holds ``source``, ``target`` (3,H,W) in [-1,1], quantised to 8 bits as a file would be; ``object``
    (3,S,S), CLIP-normalised; ``mask`` (1,H,W) of the inserted object and ``others`` (1,H,W) of the things already
    there, both in {0,1}; ``instruction``; ``label`` (3,) = (shape, colour, texture); ``id``.

    Args:
        split: "train", "val" or "test": disjoint in scene numbers and in the kinds of thing inserted.
        length: Number of samples.
        size: Side of the scenes in pixels, 32 to 128.
        object_size: Side of the reference picture in pixels.
        seed: World seed.
        held_out: Fraction of (shape, colour, texture) triples kept from training.
        reference_rotation: Largest rotation of the reference against the scene, radians.

    Raises:
        InputError: If ``size`` is outside 32..128.
    """

    views, endless = 1, ""
    _FIRST: ClassVar = {"train": 0, "val": 1 << 40, "test": 1 << 41}

    def __init__(
        self,
        split: str,
        length: int,
        *,
        size: int = 32,
        object_size: int = 32,
        seed: int = 0,
        held_out: float = 0.15,
        reference_rotation: float = 0.0,
    ) -> None:
        if not 32 <= size <= 128:
            raise InputError(f"size is {size}; scenes are drawn at 32 to 128 pixels")
        self.split, self.length, self.size, self.object_size = split, length, size, object_size
        self.seed, self.reference_rotation = seed, reference_rotation
        self.triples = world.combinations(split, held_out)
        self.processor = clip_processor(object_size)

    def __len__(self) -> int:
        return self.length

    def view(self, index: int, view: int = 0) -> dict[str, Any]:
        """One sample; there is one version of each."""
        return self[index]

    def view_of(self, index: int, epoch: int) -> int:
        """Which version an epoch uses."""
        return 0

    def fingerprint(self) -> str:
        """All that the samples depend on beside their number."""
        settings = (self.split, self.size, self.object_size, self.seed, self.reference_rotation)
        return repr((settings, self.triples.tolist()))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """Draw the samples with these numbers as one batch (leading dimension ``len(indices)``)."""
        index = torch.as_tensor(indices, dtype=torch.int64) + self._FIRST[self.split]
        scenes = world.lay_out(index, seed=self.seed, triples=self.triples)
        rgb, coverage = world.draw_objects(scenes.objects, self.size)
        backdrop = world.draw_places(world.draw_background(scenes.background, self.size), scenes)
        rows = torch.arange(len(index))
        present = scenes.state == world.OCCUPIED
        before = present.clone()
        before[rows, scenes.chosen] = False
        reference = world.reference_of(
            scenes, index, seed=self.seed, size=self.object_size, rotation=self.reference_rotation
        )
        label = scenes.objects.label[rows, scenes.chosen]
        return {
            "source": _quantise(world.compose(backdrop, rgb, coverage, before)),
            "target": _quantise(world.compose(backdrop, rgb, coverage, present)),
            "object": self.processor((reference * 255).round().to(torch.uint8), return_tensors="pt").pixel_values,
            "mask": (coverage[rows, scenes.chosen] >= 0.5).float(),
            "others": (coverage * before[:, :, None, None, None]).amax(1).ge(0.5).float(),
            "instruction": [f"add {world.describe(row)}" for row in label],
            "label": label,
            "id": [f"scene-{self.split}-{i}" for i in indices],
        }

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        batch = self.batch(indices)
        return [{key: value[i] for key, value in batch.items()} for i in range(len(indices))]


def _quantise(image: Tensor) -> Tensor:
    return (image * 255).round() / 127.5 - 1


class ScenesDataModule(ProceduralDataModule):
    """The offline default: endless insertion triplets with ground truth, no files needed.

    Args:
        batch_size: Samples per step and rank.
        num_workers: Loader processes; drawing costs under a millisecond a sample, so 0 is fine.
        size: Side of the scenes in pixels, 32 to 128.
        object_size: Side of the reference picture in pixels.
        train_length: Samples in a training epoch.
        val_length: Samples for validation.
        test_length: Samples for test and predict.
        seed: World seed; also the seed of the order.
        held_out: Fraction of (shape, colour, texture) triples never inserted in training.
        reference_rotation: Largest rotation of the reference against the scene, radians.
    """

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        size: int = 32,
        object_size: int = 32,
        train_length: int = 100_000,
        val_length: int = 256,
        test_length: int = 512,
        seed: int = 0,
        held_out: float = 0.15,
        reference_rotation: float = 0.0,
    ) -> None:
        super().__init__(batch_size, num_workers, {"train": train_length, "val": val_length, "test": test_length}, seed)
        self.save_hyperparameters(logger=False)
        self.options: dict[str, Any] = {
            "size": size,
            "object_size": object_size,
            "seed": seed,
            "held_out": held_out,
            "reference_rotation": reference_rotation,
        }

    def dataset(self, split: str) -> SceneDataset:
        """The scenes of one split."""
        return SceneDataset(split, self.lengths[split], **self.options)

    @property
    def processor(self) -> CLIPImageProcessor:
        """The CLIP preprocessing of references."""
        return clip_processor(self.options["object_size"])
