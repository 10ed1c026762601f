"""Random numbers that depend on nothing but (seed, rank, step)."""

import hashlib

import torch
from torch import Tensor


def step_generator(seed: int, rank: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one training step on one rank.

    The same triple gives the same stream whether the run was interrupted or not; other ranks and steps give
    unrelated streams.

    Args:
        seed: Run seed.
        rank: Global rank of the process.
        step: Number of the batch within the run, counted over all epochs.
        device: Where the numbers are drawn.
    """
    digest = hashlib.blake2b(f"{seed}/{rank}/{step}".encode(), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "little") >> 1)


class Draws:
    """Random numbers of this rank's part of a global batch.

    The generator is the same on every rank and draws for all of them, so that a batch gets the same numbers however
    many processes share it.

    Args:
        generator: Seeded alike on all ranks.
        count: Samples of this rank.
        rank: This rank.
        world_size: Number of ranks.
    """

    def __init__(self, generator: torch.Generator, count: int, rank: int = 0, world_size: int = 1) -> None:
        self.generator, self.count, self.total = generator, count, count * world_size
        self.first = rank * count

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, (B, *shape)."""
        return self._own(torch.randn(self.total, *shape, generator=self.generator, device=self.generator.device))

    def uniform(self) -> Tensor:
        """Uniform numbers in [0,1), (B,)."""
        return self._own(torch.rand(self.total, generator=self.generator, device=self.generator.device))

    def _own(self, drawn: Tensor) -> Tensor:
        return drawn[self.first : self.first + self.count]
