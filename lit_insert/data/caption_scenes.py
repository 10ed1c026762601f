"""Scenes of the procedural world with a caption each: what a small text-to-image model learns from."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_insert.data import world
from lit_insert.data.procedural import ProceduralDataModule
from lit_insert.data.scenes import SceneDataset
from lit_insert.errors import InputError

_STREAM, _DRAWS = 11, 12
_PLACES = ("at top left", "at top right", "at bottom left", "at bottom right")


class CaptionSceneDataset(Dataset[dict[str, Any]]):
    """One to three things on marked places over a backdrop, and a sentence that names them.

    A sample holds ``image`` (3,H,W) in [-1,1], quantised to 8 bits; ``caption``, such as "a photo of a striped red
    circle and a blue ring on waves", things in random order, the first words and the backdrop each in half of the
    captions, the things' places ("a blue ring at top left") in a fraction ``places`` of them; ``mask`` (1,H,W) in
    {0,1} of all things; ``masks`` (4,1,H,W), one for each place, and ``labels`` (4,3), (shape, colour, texture)
    there, -1 at empty places; ``boxes`` (4,4), x0, y0, x1, y1 in [0,1] around the things, zeros at empty places;
    ``id``. All of it depends on (seed, split, index) alone.

    Args:
        split: "train", "val" or "test": disjoint in scene numbers.
        length: Number of samples.
        size: Side of the pictures in pixels, 32 to 128.
        seed: World seed.
        chances: Chances of one, two and three things.
        places: Chance that a caption tells where its things stand.

    Raises:
        InputError: If ``size`` is outside 32..128, the chances are not three numbers that sum to 1, or ``places`` is
            no fraction.
    """

    def __init__(
        self,
        split: str,
        length: int,
        *,
        size: int = 32,
        seed: int = 0,
        chances: Sequence[float] = (0.45, 0.4, 0.15),
        places: float = 0.0,
    ) -> None:
        if not 32 <= size <= 128:
            raise InputError(f"size is {size}; scenes are drawn at 32 to 128 pixels")
        if len(chances) != 3 or min(chances) < 0 or abs(sum(chances) - 1) > 1e-6:
            raise InputError(f"chances is {list(chances)}; give three numbers of 0 or more that sum to 1")
        if not 0 <= places <= 1:
            raise InputError(f"places is {places}; it is a chance, from 0 to 1")
        self.places = places
        self.split, self.length, self.size, self.seed = split, length, size, seed
        self.bounds = torch.tensor(chances, dtype=torch.float32).cumsum(0)[:2]
        self.triples = world.combinations(split, 0.0)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        batch = self.batch(indices)
        return [{key: value[i] for key, value in batch.items()} for i in range(len(indices))]

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """Draw the samples with these numbers as one batch (leading dimension ``len(indices)``)."""
        index = torch.as_tensor(indices, dtype=torch.int64) + SceneDataset._FIRST[self.split]
        scenes = world.lay_out(index, seed=self.seed, triples=self.triples)
        u = world.uniforms(self.seed, index, _DRAWS, stream=_STREAM)
        count = 1 + (u[:, :1] >= self.bounds).sum(1)
        rank = u[:, 1:5].argsort(1).argsort(1)  # of each place
        present = rank < count[:, None]
        scenes.state = torch.where(present, world.OCCUPIED, world.ABSENT)
        rgb, coverage = world.draw_objects(scenes.objects, self.size)
        backdrop = world.draw_places(world.draw_background(scenes.background, self.size), scenes)
        image = world.compose(backdrop, rgb, coverage, present)
        masks = ((coverage >= 0.5) & present[:, :, None, None, None]).float()
        told = u[:, 11] < self.places
        kind = (scenes.background[:, 0] * len(world.BACKGROUNDS)).long()
        return {
            "image": (image * 255).round() / 127.5 - 1,
            "caption": [
                _caption(
                    {int(place): label[place] for place in order[:n]},
                    photo=bool(words[0] < 0.5),
                    backdrop=world.BACKGROUNDS[k] if words[1] < 0.5 else None,
                    places=bool(tell),
                )
                for label, order, n, words, k, tell in zip(
                    scenes.objects.label,
                    (u[:, 5:9] + (~present) * 2).argsort(1),
                    count,
                    u[:, 9:11],
                    kind,
                    told,
                    strict=True,
                )
            ],
            "mask": masks.amax(1),
            "masks": masks,
            "labels": torch.where(present[..., None], scenes.objects.label, -1),
            "boxes": _boxes(masks[:, :, 0]),
            "id": [f"caption-{self.split}-{i}" for i in indices],
        }


def _caption(labels: dict[int, Tensor], *, photo: bool, backdrop: str | None, places: bool) -> str:
    """Name the things (by place) in the order given."""
    things = " and ".join(
        f"{world.describe(label)}{f' {_PLACES[place]}' if places else ''}" for place, label in labels.items()
    )
    return f"{'a photo of ' if photo else ''}{things}{f' on {backdrop}' if backdrop else ''}"


def _boxes(masks: Tensor) -> Tensor:
    """Boxes (N,K,4) as fractions around masks (N,K,H,W); zeros around nothing."""
    height, width = masks.shape[-2:]
    rows, columns = masks.amax(-1), masks.amax(-2)
    edges = [
        columns.argmax(-1) / width,
        rows.argmax(-1) / height,
        1 - columns.flip(-1).argmax(-1) / width,
        1 - rows.flip(-1).argmax(-1) / height,
    ]
    return torch.stack(edges, dim=-1) * masks.flatten(2).amax(-1, keepdim=True)


class CaptionScenesDataModule(ProceduralDataModule):
    """Endless captioned scenes, no files needed.

    Args:
        batch_size: Samples per step and rank.
        num_workers: Loader processes; drawing costs under a millisecond a sample, so 0 is fine.
        size: Side of the pictures in pixels, 32 to 128.
        train_length: Samples in a training epoch.
        val_length: Samples for validation.
        test_length: Samples for test and predict.
        seed: World seed; also the seed of the order.
        chances: Chances of one, two and three things in a picture.
        places: Chance that a training caption tells where its things stand; others never do.
    """

    def __init__(
        self,
        batch_size: int = 32,
        num_workers: int = 0,
        size: int = 32,
        train_length: int = 1_000_000,
        val_length: int = 64,
        test_length: int = 256,
        seed: int = 0,
        chances: tuple[float, float, float] = (0.45, 0.4, 0.15),
        places: float = 0.0,
    ) -> None:
        super().__init__(batch_size, num_workers, {"train": train_length, "val": val_length, "test": test_length}, seed)
        self.save_hyperparameters(logger=False)
        self.size = size
        self.chances, self.places = chances, places

    def dataset(self, split: str) -> CaptionSceneDataset:
        """The scenes of one split."""
        return CaptionSceneDataset(
            split,
            self.lengths[split],
            size=self.size,
            seed=self.seed,
            chances=self.chances,
            places=self.places if split == "train" else 0.0,
        )
