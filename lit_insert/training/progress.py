"""Progress for logs: a plain line every so often, with the time left."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar


class PlainProgress(ProgressBar):
    """One line every ``every_n_steps`` optimiser steps, for output that is not a terminal.

    Args:
        every_n_steps: Optimiser steps between two lines.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__()
        self.every_n_steps = max(1, every_n_steps)
        self._enabled = True
        self._first, self._clock, self._told = 0, 0.0, -1

    def enable(self) -> None:
        """Lightning turns it on."""
        self._enabled = True

    def disable(self) -> None:
        """Lightning turns it off on every rank but the first."""
        self._enabled = False

    def _print(self, text: str) -> None:
        if self._enabled:
            print(text, file=sys.stderr, flush=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._first, self._clock = trainer.global_step, time.monotonic()
        self._told = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print the line."""
        step, total = trainer.global_step, total_steps(trainer)
        if step == self._told or (step % self.every_n_steps and step != total and step != self._first + 1):
            return
        self._told = step
        spent = time.monotonic() - self._clock
        left = f", {clock(spent / (step - self._first) * (total - step))} left" if total else ""
        self._print(f"step {step}/{total or '?'}{left}{self._values(trainer, pl_module)}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print what validation found."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            values = self._values(trainer, pl_module, "val/")
            self._print(f"step {trainer.global_step}: validated{values}")

    def _values(self, trainer: pl.Trainer, pl_module: pl.LightningModule, prefix: str = "train/") -> str:
        metrics = self.get_metrics(trainer, pl_module)
        shown = {k: v for k, v in metrics.items() if k.startswith(prefix) and not k.endswith("_step")}
        return "".join(
            f", {k.removeprefix('train/')} {v:.4g}" if isinstance(v, float) else f", {k} {v}" for k, v in shown.items()
        )


def progress(every_n_steps: int) -> ProgressBar:
    """Bars on a terminal, plain lines elsewhere.

    Args:
        every_n_steps: Optimiser steps between two lines.
    """
    if sys.stderr.isatty() and sys.stdout.isatty():
        return RichProgressBar()
    return PlainProgress(every_n_steps)


def total_steps(trainer: pl.Trainer) -> int:
    """Optimiser steps in the whole run, 0 if it has no known end."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if 0 < steps < float("inf") else 0


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
