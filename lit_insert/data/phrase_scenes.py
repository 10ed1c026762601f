"""Scenes of the procedural world with phrases, and the masks of what each phrase names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_insert.data import world
from lit_insert.data.procedural import ProceduralDataModule
from lit_insert.data.scenes import SceneDataset
from lit_insert.errors import InputError

_STREAM, _LAYOUT, _PHRASE = 13, 16, 16  # of the draws: how many for a scene and for each of its phrases
ANY = -1
_SIZES = torch.tensor([len(world.SHAPES), len(world.COLORS), len(world.TEXTURES)])
_KEEP = torch.tensor([0.75, 0.7, 0.35])  # how often a phrase names shape, colour, texture
_NOUNS = ("thing", "object", "shape")


def phrase(kind: Sequence[int], article: str = "", plural: bool = False, noun: str = "thing") -> str:
    """Words for a kind of thing, such as "the striped red circles" or "blue thing".

    Args:
        kind: Shape, colour and texture; `ANY` for what is not said.
        article: Nothing, "a" (which becomes "an" where it must) or "the".
        plural: More than one.
        noun: The word for any shape.
    """
    shape, color, texture = kind
    name = noun if shape == ANY else world.SHAPES[shape]
    if plural:
        name += "es" if name.endswith("s") else "s"
    words = [] if texture == ANY else [world.TEXTURES[texture]]
    words += [] if color == ANY else [world.COLORS[color]]
    words.append(name)
    if article == "a" and not plural:
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    elif article == "the":
        words.insert(0, "the")
    return " ".join(words)


def named(kind: Tensor, label: Tensor, present: Tensor) -> Tensor:
    """Which things a phrase names: (N,P,3) kinds and (N,K,3) labels to (N,P,K) bool."""
    same = (kind[:, :, None] == ANY) | (kind[:, :, None] == label[:, None])
    return same.all(-1) & present[:, None]


@dataclass
class Layout:
    """Scenes before drawing, with which of their places are taken."""

    scenes: world.Scenes
    present: Tensor


class PhraseSceneDataset(Dataset[dict[str, Any]]):
    """Things on a backdrop, phrases that name some of them or none, and what each phrase names.

    Of the phrases about two thirds name something. Of the others most are near misses: one word is wrong, or the
    words belong to two different things. A word that a phrase lacks may be anything: "red circle" is striped ones too.

    A sample holds ``image`` (3,H,W) in [-1,1], quantised to 8 bits; ``phrases``, P of them with ``;`` between;
    ``masks`` (P,H,W) in {0,1} of all that each names; ``kinds`` (P,3), the shape, colour and texture in each, -1 where
    not said; ``things`` (4,H,W) in {0,1}, one mask a place; ``labels`` (4,3), -1 at empty places; ``id``. All of it
    depends on (seed, split, index) alone.

    Args:
        split: "train", "val" or "test": disjoint in scene numbers.
        length: Number of samples.
        size: Side of the pictures in pixels, 32 to 128.
        phrases: Phrases a picture.
        least: Fewest things in a picture.
        most: Most things in a picture, up to 4.
        seed: World seed.
        portraits: Chance of a picture of one thing alone that fills most of it, half of these on a plain ground.

    Raises:
        InputError: If a number is out of range.
    """

    def __init__(
        self,
        split: str,
        length: int,
        *,
        size: int = 64,
        phrases: int = 4,
        least: int = 1,
        most: int = 4,
        seed: int = 0,
        portraits: float = 0.0,
    ) -> None:
        if not 32 <= size <= 128:
            raise InputError(f"size is {size}; scenes are drawn at 32 to 128 pixels")
        if phrases < 1:
            raise InputError(f"phrases is {phrases}; give 1 or more")
        if not 0 <= least <= most <= 4 or most < 1:
            raise InputError(f"least is {least} and most {most}; give 0 to 4 things, and at least one at most")
        if not 0 <= portraits <= 1:
            raise InputError(f"portraits is {portraits}; it is a chance, from 0 to 1")
        self.portraits = portraits
        self.split, self.length, self.size, self.phrases = split, length, size, phrases
        self.least, self.most, self.seed = least, most, seed
        self.triples = world.combinations(split, 0.0)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        batch = self.batch(indices)
        return [{key: value[i] for key, value in batch.items()} for i in range(len(indices))]

    def lay_out(self, index: Tensor) -> Layout:
        """What stands where in the scenes with these world numbers."""
        scenes = world.lay_out(index, seed=self.seed, triples=self.triples)
        u = world.uniforms(self.seed, index, _LAYOUT, stream=_STREAM)
        count = self.least + (u[:, 0] * (self.most - self.least + 1)).long()
        near = u[:, 5] < self.portraits
        present = u[:, 1:5].argsort(1).argsort(1) < torch.where(near, 1, count)[:, None]
        # A portrait has no marked place.
        scenes.state = torch.where(present & ~near[:, None], world.OCCUPIED, world.ABSENT)
        if near.any():
            _step_up(scenes, near, near & (u[:, 6] < 0.5))
        return Layout(scenes, present)

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """Draw the samples with these numbers as one batch (leading dimension ``len(indices)``)."""
        index = torch.as_tensor(indices, dtype=torch.int64) + SceneDataset._FIRST[self.split]
        layout = self.lay_out(index)
        image, things = draw(layout, self.size)
        label = layout.scenes.objects.label[:, :4]
        kinds, words = self._phrases(index, label, layout.present)
        found = named(kinds, label, layout.present)
        return {
            "image": image,
            "phrases": words,
            "masks": (found[..., None, None] * things[:, None]).amax(2),
            "kinds": kinds,
            "things": things,
            "labels": torch.where(layout.present[..., None], label, ANY),
            "id": [f"phrase-{self.split}-{i}" for i in indices],
        }

    def _phrases(self, index: Tensor, label: Tensor, present: Tensor) -> tuple[Tensor, list[str]]:
        """Kinds (N,P,3) and their words."""
        n, p = len(index), self.phrases
        u = world.uniforms(self.seed, index, p * _PHRASE, stream=_STREAM + 1).reshape(n, p, _PHRASE)
        # The things of a scene in any order; where there are none, the first one drawn, which is then absent.
        rank = (present.float() + world.uniforms(self.seed, index, 4, stream=_STREAM + 2) * 0.5).argsort(
            1, descending=True
        )
        count = present.sum(1).clamp(min=1)
        rows = torch.arange(n)[:, None]
        one = label[rows, rank[rows, (u[..., 0] * count[:, None]).long()]]
        other = label[rows, rank[rows, (u[..., 1] * count[:, None]).long()]]
        said = u[..., 2:5] < _KEEP
        said[..., 0] |= ~said.any(-1)
        way = u[..., 5]
        swap = (way >= 0.9) & (way < 0.96)
        kind = torch.where(swap[..., None] & (torch.arange(3) == 1), other, one)
        # A near miss: one of the words that are said becomes another of its sort.
        pick = torch.where(said, u[..., 6:9], -1.0).argmax(-1)
        wrong = (kind + 1 + (u[..., 9:12] * (_SIZES - 1)).long()) % _SIZES
        miss = ((way >= 0.64) & (way < 0.9))[..., None] & (torch.arange(3) == pick[..., None])
        kind = torch.where(miss, wrong, kind)
        kind = torch.where((way >= 0.96)[..., None], (u[..., 6:9] * _SIZES).long(), kind)
        kind = torch.where(said, kind, ANY)
        articles = ("", "a", "the")
        words = [
            ";".join(
                phrase(k, articles[int(v[0] * 3)], bool(v[1] < 0.25), _NOUNS[int(v[2] * len(_NOUNS))])
                for k, v in zip(own.tolist(), draws.tolist(), strict=True)
            )
            for own, draws in zip(kind, u[..., 12:15], strict=True)
        ]
        return kind, words


def _step_up(scenes: world.Scenes, near: Tensor, plain: Tensor) -> None:
    """Move the things of some scenes to the middle, at about twice their size; give some a plain ground."""
    things, cells = scenes.objects, world.CELLS
    things.x = torch.where(near[:, None], things.x - cells[:, 0] + 0.5, things.x)
    things.y = torch.where(near[:, None], things.y - cells[:, 1] + 0.5, things.y)
    largest = (things.radius - 0.175) / 0.035  # of all sizes, from 0 to 1
    things.radius = torch.where(near[:, None], 0.30 + 0.13 * largest, things.radius)
    ground = scenes.background
    ground[:, 2] = torch.where(plain, ground[:, 1], ground[:, 2])
    ground[:, 6:9] = torch.where(plain[:, None], ground[:, 3:6], ground[:, 6:9])


def draw(layout: Layout, size: int) -> tuple[Tensor, Tensor]:
    """Pictures (N,3,size,size) in [-1,1] and masks (N,4,size,size) in {0,1} of the things at each place."""
    scenes, present = layout.scenes, layout.present
    rgb, coverage = world.draw_objects(scenes.objects, size)
    backdrop = world.draw_places(world.draw_background(scenes.background, size), scenes)
    image = world.compose(backdrop, rgb, coverage, present)
    things = ((coverage[:, :, 0] >= 0.5) & present[:, :, None, None]).float()
    return (image * 255).round() / 127.5 - 1, things


def rearrange(layout: Layout, index: Tensor, *, seed: int = 0) -> tuple[Layout, Tensor]:
    """The same things elsewhere: places shuffled; position, size, angle, pattern and backdrop drawn anew.

    Args:
        layout: The scenes.
        index: Their world numbers, int64 (N,).
        seed: World seed.

    Returns:
        The new layout, and (N,4) int64: which place each of its places was before.
    """
    u = world.uniforms(seed, index, 32, stream=_STREAM + 3)
    fresh = world.lay_out(index + (1 << 42), seed=seed, triples=world.combinations("train", 0.0))
    order = u[:, :4].argsort(1)
    rows = torch.arange(len(index))[:, None]
    fresh.objects.label[:, :4] = layout.scenes.objects.label[rows, order]
    present = layout.present[rows, order]
    fresh.state = torch.where(present, world.OCCUPIED, world.ABSENT)
    return Layout(fresh, present), order


class PhraseScenesDataModule(ProceduralDataModule):
    """Endless scenes with phrases, no files needed.

    Args:
        batch_size: Pictures per step and rank.
        num_workers: Loader processes; drawing costs about a millisecond a picture, so 0 is fine.
        size: Side of the pictures in pixels, 32 to 128.
        phrases: Phrases a picture.
        train_length: Pictures in a training epoch.
        val_length: Pictures for validation.
        test_length: Pictures for test and predict; they have two to four things.
        seed: World seed; also the seed of the order.
        portraits: Chance of a picture of one thing that fills most of it.
    """

    def __init__(
        self,
        batch_size: int = 32,
        num_workers: int = 0,
        size: int = 64,
        phrases: int = 4,
        train_length: int = 1_000_000,
        val_length: int = 256,
        test_length: int = 256,
        seed: int = 0,
        portraits: float = 0.0,
    ) -> None:
        super().__init__(batch_size, num_workers, {"train": train_length, "val": val_length, "test": test_length}, seed)
        self.save_hyperparameters(logger=False)
        self.size, self.phrases, self.portraits = size, phrases, portraits

    def dataset(self, split: str) -> PhraseSceneDataset:
        """The scenes of one split."""
        return PhraseSceneDataset(
            split,
            self.lengths[split],
            size=self.size,
            phrases=self.phrases,
            least=0 if split == "train" else 2,
            seed=self.seed,
            portraits=self.portraits,
        )
