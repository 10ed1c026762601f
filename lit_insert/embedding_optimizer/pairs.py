"""Scenes, references and generators in whatever form they are given, brought to one entry a pair."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lit_insert.errors import InputError
from lit_insert.images import load_image, to_pil

Picture = Image.Image | str | Path | Tensor
Generators = torch.Generator | Sequence[torch.Generator] | None


def as_pictures(given: Any, name: str, *, alpha: bool = False) -> list[Image.Image]:
    """Whatever form pictures come in, as a list of PIL pictures.

    Args:
        given: A PIL picture, a path, a tensor (3,H,W) or (N,3,H,W) in [-1,1], or a sequence of these.
        name: What to call it in a message.
        alpha: Keep the alpha of files.

    Raises:
        InputError: If one is none of these, or its file is unreadable.
    """
    if isinstance(given, Tensor):
        if given.ndim not in (3, 4) or given.shape[-3] != 3:
            raise InputError(f"{name}: a tensor must be (3,H,W) or (N,3,H,W), not {tuple(given.shape)}")
        return [to_pil(t) for t in (given if given.ndim == 4 else given[None])]
    if not isinstance(given, list | tuple):
        given = [given]
    found = []
    for item in given:
        if isinstance(item, str | Path):
            found.append(load_image(item, mode="RGBA" if alpha else "RGB"))
        elif isinstance(item, Tensor):
            found.extend(as_pictures(item, name))
        elif isinstance(item, Image.Image):
            found.append(item)
        else:
            raise InputError(f"{name}: expected a PIL picture, a path or a tensor, not {type(item).__name__}")
    if not found:
        raise InputError(f"{name}: no picture given")
    return found


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
