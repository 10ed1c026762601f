"""Stops a run whose loss or gradient is no longer finite, naming the samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lit_insert.errors import InputError


@dataclass
class _Step:
    number: int
    norm: Tensor | None
    losses: list[tuple[Tensor, list[str]]]
    shared: bool  # every rank sees the same norm, so that all take part in the report


class LossWatch:
    """Remembers the losses of one optimiser step and judges them by the norm of the gradient.

    The norm is the same on every rank after the gradients are summed, so all ranks stop together, and the rank
    that saw the sample can tell its id. On an accelerator a step is judged while the next one runs, which costs
    no wait; `flush` judges at once and is called before any checkpoint is written.
    """

    def __init__(self) -> None:
        self._losses: list[tuple[Tensor, list[str]]] = []
        self._pending: _Step | None = None

    def note(self, loss: Tensor, batch: Any) -> None:
        """Remember one batch's loss and the ids in it."""
        ids = batch.get("id", ()) if isinstance(batch, Mapping) else ()
        self._losses.append((loss.detach(), [str(i) for i in ids]))

    def check(self, norm: Tensor, trainer: pl.Trainer) -> None:
        """Judge a step before its update is made (on an accelerator: the step before it).

        Raises:
            InputError: If the loss or the gradient is NaN or infinite.
        """
        scaled = trainer.precision == "16-mixed"  # its scaler overflows on purpose and skips such steps itself
        shared = trainer.world_size > 1 and not scaled
        self.flush()
        self._pending = _Step(trainer.global_step, None if scaled else norm, self._losses, shared)
        self._losses = []
        if norm.device.type == "cpu":
            self.flush()

    def flush(self) -> None:
        """Judge what has not been judged yet.

        Raises:
            InputError: If the loss or the gradient is NaN or infinite.
        """
        step, self._pending = self._pending, None
        if step is None or not _odd(step):
            return
        bad = [(float(loss), ids) for loss, ids in step.losses if not torch.isfinite(loss)]
        if step.shared:
            gathered: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, bad)
            bad = [entry for part in gathered for entry in part]
        ids = [i for _, part in bad for i in part] or [i for _, part in step.losses for i in part]
        what = f"loss is {bad[0][0]}" if bad else "gradient is not finite though the loss is"
        where = f"batch ids: {', '.join(ids)}" if ids else "the batch has no ids"
        error = InputError(f"{what} at step {step.number}; {where}; the last checkpoint is untouched")
        error.on_all_ranks = step.shared  # type: ignore[attr-defined]
        raise error


def _odd(step: _Step) -> bool:
    if step.norm is not None:
        return not bool(torch.isfinite(step.norm))
    return any(not bool(torch.isfinite(loss)) for loss, _ in step.losses)
