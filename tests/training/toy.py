"""A model and data of a few hundred numbers, with everything that makes a resume go wrong."""

import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from lit_insert.data.loading import resumable_loader, sample_generator
from lit_insert.training.base import BaseModule, frozen


class ToyModule(BaseModule):
    """Dropout, batch norm, noise, a frozen encoder and a scheduler in one small regression.

    Args:
        width: Hidden units.
        noise: Standard deviation of the noise put on the inputs.
        dropout: Probability of dropping a unit.
        norm: Whether to have a batch norm, whose buffers must be in the checkpoint.
        pause: Seconds to sleep in each step.
        nan_at: Id of a sample whose loss is NaN.
        base: What it builds on.
        trace: Where each rank writes the noise that it draws, as <trace>.<rank>.
        optimizer: Makes the optimiser.
        lr_scheduler: Makes the scheduler.
        noise_seed: Seed of the noise.
    """

    def __init__(
        self,
        width: int = 8,
        noise: float = 0.1,
        dropout: float = 0.2,
        norm: bool = True,
        pause: float = 0.0,
        nan_at: str | None = None,
        base: str = "toy/base",
        trace: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, noise_seed)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.noise, self.pause, self.nan_at, self.trace = noise, pause, nan_at, trace
        generator = torch.Generator().manual_seed(5)
        self.encoder = frozen(nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.5)))
        self.net = nn.Sequential(
            nn.Linear(width, width),
            nn.BatchNorm1d(width) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, 1),
        )
        for p in [*self.encoder.parameters(), *self.net.parameters()]:
            p.data = torch.randn(p.shape, generator=generator) * 0.5
        self.drawn: list[float] = []

    def compute_loss(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
        time.sleep(self.pause)
        noise = torch.randn(batch["x"].shape, generator=generator)
        x = batch["x"] + self.noise * noise
        self.drawn.append(float(x.sum()))
        if self.trace:
            with open(f"{self.trace}.{self.global_rank}", "a") as file:
                file.write(f"{float(noise[0, 0])}\n")
        y = self.net(self.encoder(x)).float().squeeze(1)
        loss = (y - batch["y"]).square().mean()
        if self.nan_at in batch["id"]:
            loss = loss * float("nan")
        return {"loss": loss}

    def export(self, folder: Any) -> None:
        from pathlib import Path

        from safetensors.torch import save_file

        path = Path(folder) / "net"
        path.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in self.net.state_dict().items()}, path / "model.safetensors")

    def sample_grid(self, batch: Mapping[str, Any], generator: torch.Generator) -> list[list[Any]]:
        value = float(self.net(self.encoder(batch["x"])).mean())
        return [[torch.full((3, 4, 4), value).clamp(-1, 1), torch.rand(3, 4, 4)] for _ in batch["id"]]

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        return {"id": batch["id"], "image": [torch.zeros(3, 4, 4) for _ in batch["id"]]}


class ToyDataset:
    """Points and their targets; the augmentation depends on (epoch, index)."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, epoch: int) -> dict[str, Any]:
        x = torch.randn(4, generator=sample_generator(7, epoch, index))
        return {"x": x, "y": x.sum(), "id": f"s{index}"}


class ToyData(pl.LightningDataModule):
    """Toy points.

    Args:
        length: Training samples.
        batch_size: Samples per step and rank.
        num_workers: Loader processes.
        shuffle: Shuffle the training samples.
    """

    def __init__(self, length: int = 22, batch_size: int = 4, num_workers: int = 0, shuffle: bool = True) -> None:
        super().__init__()
        self.length, self.batch_size, self.num_workers, self.shuffle = (
            length,
            batch_size,
            num_workers,
            shuffle,
        )

    def train_dataloader(self) -> Any:
        return resumable_loader(ToyDataset(self.length), self.batch_size, self.num_workers, shuffle=self.shuffle)

    def val_dataloader(self) -> Any:
        return resumable_loader(ToyDataset(8), 4, shuffle=False)

    test_dataloader = predict_dataloader = val_dataloader
