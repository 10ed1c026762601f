"""An exponential moving average of what trains."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lit_insert.errors import InputError
from lit_insert.training.base import sharded
from lit_insert.training.parameters import trainable


def ema_decay(step: int, ceiling: float, warmup: bool = True) -> float:
    """Decay of the ``step``-th update (from 1), as diffusers' ``EMAModel`` has it.

    The first update copies; with warm-up the k-th keeps k/(9+k) of the old average, at most ``ceiling``.
    """
    if step <= 1:
        return 0.0
    return min(step / (9 + step), ceiling) if warmup else ceiling


class EMA(pl.Callback):
    """Average the trainable weights over optimiser steps and use the average wherever the model is judged.

    The average is float32, stands in the checkpoint, and is swapped in for validation, test, prediction, samples
    and export. Frozen weights and buffers are not averaged and not copied.

    Args:
        decay: Weight of the old average, 0..1, once warm; 0 turns averaging off.
        warmup: Let the k-th update keep at most k/(9+k), so that the first weights are soon forgotten.
    """

    def __init__(self, decay: float = 0.9999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"ema.decay is {decay}; give 0 (off) or more, and less than 1")
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self.shadow: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] = {}
        self._seen = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse strategies under which a rank does not hold whole weights."""
        if self.decay and stage == "fit" and sharded(trainer.strategy):
            raise InputError("ema.decay must be 0 with a sharded strategy (FSDP): no rank holds whole weights")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start from the present weights unless a checkpoint brought an average."""
        if self.decay and not self.shadow:
            self.shadow = {n: p.detach().float().clone() for n, p in trainable(pl_module).items()}
        self._seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average once per optimiser step, however many batches were accumulated in it."""
        if not self.decay or trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        self.updates += 1
        weights = trainable(pl_module)
        names = list(self.shadow)
        self._place(next(iter(weights.values())).device)
        torch._foreach_lerp_(
            [self.shadow[n] for n in names],
            [weights[n].detach().float() for n in names],
            1 - ema_decay(self.updates, self.decay, self.warmup),
        )

    def _place(self, device: torch.device) -> None:
        self.shadow = {n: s.to(device) for n, s in self.shadow.items()}

    @contextmanager
    def averaged(self, pl_module: pl.LightningModule) -> Iterator[None]:
        """Have the average in the model within the block; nests."""
        mine = self._swap_in(pl_module)
        try:
            yield
        finally:
            if mine:
                self._swap_out(pl_module)

    @torch.no_grad()
    def _swap_in(self, pl_module: pl.LightningModule) -> bool:
        if self._raw or not self.shadow or not self.updates:
            return False
        weights = dict(pl_module.named_parameters())
        self._raw = {n: weights[n].detach().clone() for n in self.shadow}
        for name, average in self.shadow.items():
            weights[name].copy_(average)
        return True

    @torch.no_grad()
    def _swap_out(self, pl_module: pl.LightningModule) -> None:
        weights = dict(pl_module.named_parameters())
        for name, raw in self._raw.items():
            weights[name].copy_(raw)
        self._raw = {}

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge the average."""
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the raw weights."""
        self._swap_out(pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge the average."""
        self._swap_in(pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the raw weights back."""
        self._swap_out(pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Predict with the average."""
        self._swap_in(pl_module)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the raw weights back."""
        self._swap_out(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the raw weights back before any other callback saves them."""
        self._swap_out(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the averaged weights out of the place of the raw ones."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {**state, **{n: r for n, r in self._raw.items() if n in state}}

    def state_dict(self) -> dict[str, Any]:
        """The average and how many updates it has had."""
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a saved average."""
        self.updates = int(state_dict["updates"])
        self.shadow = {n: s.clone() for n, s in state_dict["shadow"].items()}


def averaged_state(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], bool]:
    """Weights of a loaded checkpoint with the average in place where it has one, and whether it has one."""
    state = dict(checkpoint["state_dict"])
    for key, value in checkpoint.get("callbacks", {}).items():
        if key.split("{")[0] == EMA.__qualname__ and value.get("updates"):
            return {**state, **value["shadow"]}, True
    return state, False


def averaged(trainer: Any) -> AbstractContextManager[None]:
    """Context in which the model holds the average, if the trainer has one; else does nothing."""
    ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)
    return ema.averaged(trainer.lightning_module) if ema else nullcontext()
