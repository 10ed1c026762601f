"""Pictures of the procedural world as an image source: endless, labelled, no files needed."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lit_insert.data import world
from lit_insert.data.image_source import DrawnSource
from lit_insert.data.scenes import SceneDataset
from lit_insert.errors import InputError

_NAMES = {"shape": world.SHAPES, "color": world.COLORS, "none": ()}
_SMALLEST, _LARGEST = 8, 512


class SceneImages(DrawnSource):
    """Scenes drawn from the procedural world; picture ``i`` is a pure function of (seed, split, i).

    Pictures are drawn at the size that the data module asks for, and are never flipped or cropped: each is new.

    Args:
        split: train, val or test; their scenes are disjoint.
        count: Number of pictures.
        content: "scene" has one to four things on their places, one of which gives the label; "object" has one
            thing only, large and near the middle of a backdrop.
        labels: What a picture's class is: the shape or the color of the (labelled) thing, or none.
        seed: World seed.
        held_out: Fraction of (shape, color, texture) triples that the labelled things of the training scenes never
            have, and those of the others always; 0 for one distribution in every split.
    """

    _FIRST: ClassVar = SceneDataset._FIRST

    def __init__(
        self,
        split: Literal["train", "val", "test"] = "train",
        count: int = 50_000,
        content: Literal["scene", "object"] = "scene",
        labels: Literal["none", "shape", "color"] = "none",
        seed: int = 0,
        held_out: float = 0.0,
    ) -> None:
        if count < 1:
            raise InputError(f"count is {count}; give 1 or more")
        self.split, self.count, self.content, self.labels = split, count, content, labels
        self.seed, self.held_out = seed, held_out
        self._triples = world.combinations(split, held_out)

    @property
    def classes(self) -> list[str]:
        """Names of the shapes or colours."""
        return list(_NAMES[self.labels])

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """Content, split and number, such as scene-train-7."""
        return f"{self.content}-{self.split}-{index}"

    def draw(self, indices: Sequence[int], size: int) -> tuple[Tensor, list[int]]:
        """Pictures with these numbers, uint8 (n,3,size,size), and their class ids.

        Raises:
            InputError: If ``size`` is outside 8..512.
        """
        if not _SMALLEST <= size <= _LARGEST:
            raise InputError(f"image_size is {size}; scenes are drawn at {_SMALLEST} to {_LARGEST} pixels")
        number = torch.as_tensor(indices, dtype=torch.int64) + self._FIRST[self.split]
        scenes = world.lay_out(number, seed=self.seed, triples=self._triples)
        backdrop = world.draw_background(scenes.background, size)
        if self.content == "scene":
            present = scenes.state == world.OCCUPIED
            objects = scenes.objects
            backdrop = world.draw_places(backdrop, scenes)
        else:
            objects = self._alone(scenes, number)
            present = torch.ones(len(number), 1, dtype=torch.bool)
        rgb, coverage = world.draw_objects(objects, size)
        pixels = (world.compose(backdrop, rgb, coverage, present) * 255).round().to(torch.uint8)
        label = scenes.objects.label[torch.arange(len(number)), scenes.chosen]
        return pixels, label[:, 1 if self.labels == "color" else 0].tolist()

    def _alone(self, scenes: world.Scenes, number: Tensor) -> world.Objects:
        """The chosen things, brought near the middle and enlarged."""
        rows = torch.arange(len(number))
        u = world.uniforms(self.seed, number, 3, stream=2)
        thing = world.Objects(**{k: v[rows, scenes.chosen][:, None] for k, v in vars(scenes.objects).items()})
        thing.x, thing.y = 0.5 + (u[:, 0:1] - 0.5) * 0.12, 0.5 + (u[:, 1:2] - 0.5) * 0.12
        thing.radius = 0.28 + 0.08 * u[:, 2:3]
        return thing
