"""The LightningModule that every method builds on."""

from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lit_insert.diffusion.noise import step_generator


class BaseModule(pl.LightningModule):
    """Optimiser wiring, seeded noise, logging and slim checkpoints; subclasses say what the loss is.

    Args:
        optimizer: Makes the optimiser from parameter groups.
        lr_scheduler: Makes the scheduler, stepped every optimiser step; none by default.
        noise_seed: Seed of the noise, timesteps and dropout drawn while training.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__()
        self.optimizer_factory = optimizer
        self.lr_scheduler_factory = lr_scheduler
        self.noise_seed = noise_seed
        self.strict_loading = False

    def compute_loss(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Return ``{"loss": scalar, …parts}`` for one batch, in float32."""
        raise NotImplementedError  # abstract: every method has its own objective

    def parameter_groups(self) -> Iterable[dict[str, Any]]:
        """Optimiser groups; by default one group of everything that requires a gradient."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One optimisation step's loss."""
        batches = self.trainer.fit_loop.epoch_loop.total_batch_idx
        generator = step_generator(self.noise_seed, self.global_rank, batches, self.device)
        losses = self.compute_loss(batch, generator)
        self.log_dict({f"train/{k}": v.detach() for k, v in losses.items()}, prog_bar=True)
        return losses["loss"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The same loss on held-out batches, with the same noise every time."""
        generator = step_generator(self.noise_seed, self.global_rank, -1 - batch_idx, self.device)
        losses = self.compute_loss(batch, generator)
        size = len(next(v for v in batch.values() if isinstance(v, Tensor)))
        self.log_dict(
            {f"val/{k}": v for k, v in losses.items()}, batch_size=size, sync_dist=True, prog_bar=True
        )

    def configure_optimizers(self) -> Any:
        """Build the optimiser and, if given, a scheduler stepped every optimiser step."""
        optimizer = self.optimizer_factory(self.parameter_groups())
        if self.lr_scheduler_factory is None:
            return optimizer
        scheduler = self.lr_scheduler_factory(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def frozen(module: nn.Module) -> nn.Module:
    """Put a network in eval mode and stop its gradients; returns it."""
    return module.eval().requires_grad_(False)
