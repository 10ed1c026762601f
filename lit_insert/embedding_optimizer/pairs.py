"""Scenes, references and generators in whatever form they are given, brought to one entry a pair."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from lit_insert.errors import InputError

Generators = torch.Generator | Sequence[torch.Generator] | None


def pair_up(scenes: list[Image.Image], pixels: Tensor) -> tuple[list[Image.Image], Tensor]:
    """As many scenes as rows of ``pixels`` (N,3,S,S): a single one of either goes with all of the other.

    Raises:
        InputError: If there are several of both and their numbers differ.
    """
    if len(scenes) == len(pixels):
        return scenes, pixels
    if len(scenes) == 1:
        return scenes * len(pixels), pixels
    if len(pixels) == 1:
        return scenes, pixels.expand(len(scenes), -1, -1, -1)
    raise InputError(f"{len(scenes)} scenes and {len(pixels)} objects: give as many, or one of either")


def per_pair(generator: Generators, pairs: int) -> list[torch.Generator] | None:
    """One generator a pair.

    Raises:
        InputError: If a sequence of another length is given.
    """
    if generator is None:
        return None
    if isinstance(generator, torch.Generator):
        return [generator] * pairs
    if len(generator) != pairs:
        raise InputError(f"{len(generator)} generators for {pairs} pairs: give one for all, or one a pair")
    return list(generator)
