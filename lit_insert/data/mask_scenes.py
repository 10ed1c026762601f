"""The procedural world as a set of pictures with masks: what stands on the scene is the object."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from lit_insert.data import world
from lit_insert.data.mask_source import MaskedPicture, MaskSource
from lit_insert.data.scenes import SceneDataset
from lit_insert.errors import InputError

_STREAM = 11  # of the draws that empty a scene


class MaskScenes(MaskSource):
    """Scenes with the exact mask of all things on them; some are empty.

    The darkened discs on which a thing could stand are background, so neither contrast nor place gives the mask
    away. Splits differ in their scenes, and every scene of "val" and "test" that is not empty has at least one kind
    of thing (shape, colour, texture) that leads no scene of "train", as in `SceneDataset`.

    Args:
        split: "train", "val" or "test".
        count: Number of scenes.
        size: Side in pixels, 16 or more; no file, so as large as you like.
        seed: World seed.
        held_out: Part of the kinds of thing kept for "val" and "test".
        empty: Part of the scenes with nothing on them.
    """

    drawn = True
    _FIRST: ClassVar = SceneDataset._FIRST

    def __init__(
        self,
        split: Literal["train", "val", "test"] = "train",
        count: int = 100_000,
        size: int = 64,
        seed: int = 0,
        held_out: float = 0.15,
        empty: float = 0.25,
    ) -> None:
        if size < 16:
            raise InputError(f"size is {size}; give 16 or more")
        if count < 1:
            raise InputError(f"count is {count}; give 1 or more")
        if not 0 <= empty <= 1:
            raise InputError(f"empty is {empty}; give a part from 0 to 1")
        self.split, self.count, self.size, self.seed, self.empty = split, count, size, seed, empty
        self.triples = world.combinations(split, held_out)

    def __len__(self) -> int:
        return self.count

    def origins(self) -> set[str]:
        """Nothing: splits have scene numbers of their own."""
        return set()

    def draw(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Scenes by number.

        Returns:
            Pictures uint8 (N,3,size,size) and masks uint8 (N,size,size) in {0,1}.
        """
        index = torch.as_tensor(indices, dtype=torch.int64) + self._FIRST[self.split]
        scenes = world.lay_out(index, seed=self.seed, triples=self.triples)
        present = scenes.state == world.OCCUPIED
        present &= world.uniforms(self.seed, index, 1, stream=_STREAM) >= self.empty
        rgb, coverage = world.draw_objects(scenes.objects, self.size)
        backdrop = world.draw_places(world.draw_background(scenes.background, self.size), scenes)
        image = world.compose(backdrop, rgb, coverage, present)
        mask = (coverage[:, :, 0] * present[:, :, None, None]).amax(1) >= 0.5
        return (image * 255).round().to(torch.uint8), mask.to(torch.uint8)

    def picture(self, index: int) -> MaskedPicture:
        """Scene number ``index`` of the split."""
        image, mask = self.draw([index])
        return MaskedPicture(image[0], mask[0], f"scene-{self.split}-{index}")
