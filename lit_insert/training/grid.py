"""Pictures of what the model can do so far, always of the same inputs and the same noise."""

from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from lit_insert.diffusion.noise import step_generator
from lit_insert.errors import InputError
from lit_insert.images import image_grid, save_image
from lit_insert.training.base import BaseModule
from lit_insert.training.ema import averaged


class SampleGrid(pl.Callback):
    """Write ``samples/step-….png`` every so often, and show it in TensorBoard where that logs.

    The module says what to draw (`BaseModule.sample_grid`); it draws with the averaged weights, in eval mode, on the
    first validation samples, and leaves every random state as it was. Rank 0 does it while the others wait.

    Args:
        every_n_steps: Optimiser steps between two grids; 0 for none.
        num_samples: Validation samples in a grid.
        seed: Seed of their noise.
    """

    def __init__(self, every_n_steps: int = 500, num_samples: int = 4, seed: int = 0) -> None:
        if every_n_steps < 0 or num_samples < 1:
            raise InputError("samples.every_n_steps must be 0 or more and samples.num_samples 1 or more")
        self.every_n_steps, self.num_samples, self.seed = every_n_steps, num_samples, seed
        self._batch: Any = None
        self._drawn = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Turn off where the module cannot draw."""
        self._drawn = trainer.global_step
        if not isinstance(pl_module, BaseModule):
            self.every_n_steps = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw if a grid is due."""
        step = trainer.global_step
        if not self.every_n_steps or step == self._drawn:
            return
        self._drawn = step
        if step % self.every_n_steps == 0 or step == trainer.max_steps:
            if trainer.is_global_zero:
                self.draw(trainer, pl_module)
            trainer.strategy.barrier("samples")

    @torch.no_grad()
    def draw(self, trainer: Any, pl_module: Any) -> Path | None:
        """Draw one grid now; returns its file, or None without validation data, without pictures or in a dry run."""
        if self._batch is None:
            self._batch = first_samples(trainer, self.num_samples)
        if self._batch is None:
            return None
        batch = trainer.strategy.batch_to_device(self._batch, pl_module.device)
        generator = step_generator(self.seed, 0, 0, pl_module.device)
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), evaluating(pl_module), averaged(trainer):
            torch.manual_seed(self.seed)
            with trainer.precision_plugin.forward_context():
                rows = pl_module.sample_grid(batch, generator)
        if not rows:
            return None
        picture = image_grid(rows)
        if trainer.fast_dev_run:
            return None
        step = trainer.global_step
        path = save_image(picture, Path(trainer.default_root_dir) / "samples" / f"step-{step:07d}.png")
        for logger in trainer.loggers:
            writer: Any = getattr(logger, "experiment", None)
            if hasattr(writer, "add_image"):
                writer.add_image("samples", np.asarray(picture), step, dataformats="HWC")
        return path


@contextmanager
def evaluating(module: torch.nn.Module) -> Any:
    """Have a module and all in it in eval mode within the block, each back in its own mode after."""
    modes = [(m, m.training) for m in module.modules()]
    for m, _ in modes:
        m.training = False
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


def first_samples(trainer: Any, count: int) -> Any:
    """The first validation samples as a batch, read in this process and apart from the loop's own loader."""
    source = trainer.datamodule or trainer.lightning_module
    loader = trainer.val_dataloaders if trainer.val_dataloaders is not None else source.val_dataloader()
    if isinstance(loader, list | tuple | Mapping):
        loader = next(iter(loader.values() if isinstance(loader, Mapping) else loader), None)
    if loader is None:
        return None
    dataset = loader.dataset
    if hasattr(dataset, "sample"):
        read = [dataset.sample(i, 0) for i in range(min(count, len(dataset)))]
    elif hasattr(dataset, "__getitem__"):
        read = [dataset[i] for i in range(min(count, len(dataset)))]
    else:
        return _cut(next(iter(loader), None), count)
    return default_collate(read) if read else None


def _cut(batch: Any, count: int) -> Any:
    if isinstance(batch, Mapping):
        return {k: _cut(v, count) for k, v in batch.items()}
    return batch[:count] if isinstance(batch, Tensor | list | tuple) else batch
