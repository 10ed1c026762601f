"""One random generator a picture, so that a picture does not depend on its company in a batch."""

from collections.abc import Sequence

import torch

from lit_insert.errors import InputError

Generators = torch.Generator | Sequence[torch.Generator] | None


def per_image(generator: Generators, seed: int | None, count: int) -> list[torch.Generator]:
    """A generator for each picture.

    Args:
        generator: One for each picture, or one that seeds them all.
        seed: Picture ``i`` gets ``seed + i``, so that any of many can be made again alone. Without a seed and a
            generator they are seeded at random.
        count: Number of pictures.

    Raises:
        InputError: If both are given, or a sequence of another length.
    """
    if generator is not None and seed is not None:
        raise InputError("give either generator or seed")
    if isinstance(generator, torch.Generator):
        seeds = torch.randint(2**62, (count,), generator=generator, device=generator.device).tolist()
        return [torch.Generator().manual_seed(s) for s in seeds]
    if generator is not None:
        if len(generator) != count:
            raise InputError(f"{len(generator)} generators for {count} pictures: give one for all, or one a picture")
        return list(generator)
    first = int(torch.Generator().seed() >> 2) if seed is None else seed
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def draw_labels(generators: Sequence[torch.Generator], classes: Sequence[int]) -> list[int]:
    """A class for each picture, evenly from ``classes``."""
    return [classes[int(torch.randint(len(classes), (1,), generator=g, device=g.device))] for g in generators]
