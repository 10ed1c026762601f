"""Random numbers that do not change with the number of processes."""

from collections.abc import Mapping
from typing import Any

import torch

from lit_insert.diffusion.noise import Draws, step_generator
from lit_insert.training.base import BaseModule, batch_length


class SharedDraws(BaseModule):
    """A module whose random numbers of a batch are those of the whole global batch, of which each rank takes its part.

    So the number of processes does not change them; only dropout differs from rank to rank.
    """

    def _generator(self, number: int) -> torch.Generator:
        super()._generator(number)  # dropout: by rank
        return step_generator(self.noise_seed, 0, number, self.device)

    def draws(self, batch: Mapping[str, Any], generator: torch.Generator) -> Draws:
        """Random numbers for a batch of this rank."""
        world = self.trainer.world_size if self._trainer is not None else 1
        return Draws(generator, batch_length(batch["image"]), self.global_rank, world)
