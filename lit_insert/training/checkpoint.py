"""Checkpoints that survive a full disk, a kill and a hostile file."""

import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.errors import InputError
from lit_insert.training.base import sharded
from lit_insert.training.stop import Interrupted, StopSignals

LAST, BEST = "last.ckpt", "best.ckpt"


def read_checkpoint(path: str | Path, *, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Load a checkpoint as plain data.

    Args:
        path: The file.
        map_location: Where the tensors go, as `torch.load` takes it.
        mmap: Read tensors only when they are used: for a look at the rest.

    Raises:
        InputError: If the file is missing, truncated, holds code, or is no checkpoint; names it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path) or path.read_bytes()[:1] == b"\x80":
            reason = "it holds code or objects, not only weights, and is not run"
        else:
            reason = "it is not a checkpoint"
        raise InputError(f"{path}: refused: {reason}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        size = path.stat().st_size
        raise InputError(
            f"{path}: cannot be read ({size} bytes; truncated or damaged); use another checkpoint"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{path}: is not a training checkpoint (it has no state_dict)")
    return checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file and renames, so that a reader never meets half a checkpoint.

    With ``defer`` a failure is kept in ``failure`` instead of raised, so that the writing rank can first meet the
    others at the barrier after a save and then tell them.
    """

    def __init__(self) -> None:
        self.defer, self.failure = False, ""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write durably under a temporary name, then replace.

        Raises:
            InputError: If the disk does not take it; whatever was at ``path`` is still there.
        """
        path = Path(path)
        try:
            with atomic_file(path, durable=True) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:
            if "DataLoader worker" in str(error):
                raise  # torch raises it wherever the process happens to be
            reason = getattr(error, "strerror", None) or getattr(error.__context__, "strerror", None)
            reason = reason or "the disk does not take it"
            kept = f"the previous {path.name} is intact" if path.exists() else "nothing was written"
            self.failure = f"cannot write {path}: {reason}; {kept}; free space and --resume"
            if not self.defer:
                raise InputError(self.failure) from error

    def load_checkpoint(
        self,
        path: Any,
        map_location: Callable | None = lambda storage, loc: storage,
        weights_only: Any = None,
    ) -> dict[str, Any]:
        """Load as plain data, whatever ``weights_only`` says."""
        return read_checkpoint(path, map_location=map_location)


class RunCheckpoint(Checkpoint):
    """Keep ``last.ckpt`` (to resume from) and ``best.ckpt`` in the run's folder.

    ``last.ckpt`` is only written between optimiser steps: every ``every_n_steps``, on SIGTERM or the first Ctrl-C
    (the run then ends with status 143 or 130), and at the end. So resuming from it repeats nothing and skips
    nothing. A run stopped by an error leaves it as it was.

    Args:
        every_n_steps: Optimiser steps between two writes of last.ckpt; 0 writes it only at the end.
        monitor: Logged name, such as "val/loss", by which best.ckpt is chosen; null for none.
        mode: Whether the smallest ("min") or largest ("max") value is best.
        dirpath: Folder; by default checkpoints/ in the run's folder.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        monitor: str | None = "val/loss",
        mode: Literal["min", "max"] = "min",
        dirpath: str | None = None,
    ) -> None:
        if every_n_steps < 0:
            raise InputError(f"checkpoint.every_n_steps is {every_n_steps}; give 0 or more")
        self.every_n_steps, self.monitor, self.mode, self.dirpath = every_n_steps, monitor, mode, dirpath
        self.best_score: float | None = None
        self.signals = StopSignals()
        self._saved = -1

    @property
    def best_model_path(self) -> str:
        """Where best.ckpt is, once there is one."""
        return str(self.folder / BEST) if self.best_score is not None and self.dirpath else ""

    @property
    def folder(self) -> Path:
        """Where the checkpoints are."""
        return Path(self.dirpath or "checkpoints")

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Settle the folder and the way of writing."""
        self.dirpath = self.dirpath or str(Path(trainer.default_root_dir) / "checkpoints")
        if not sharded(trainer.strategy):
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on signals wait for the end of a step."""
        self._saved = trainer.global_step
        if trainer.is_global_zero:
            for name in (LAST, BEST):  # what a kill in the middle of a write left behind
                for half in self.folder.glob(f".{Path(name).stem}.*.ckpt"):
                    half.unlink()
        self.signals.install(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write last.ckpt if one is due, and end the run here if a signal asked for it."""
        step = trainer.global_step
        if trainer.fit_loop._should_accumulate():
            return
        stop = self.signals.agreed(trainer)
        due = self.every_n_steps and step % self.every_n_steps == 0
        if step != self._saved and (due or stop or step == trainer.max_steps):
            self._save(trainer, LAST)
        if stop:
            raise Interrupted(stop)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write best.ckpt if the metric has improved."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or self.monitor is None:
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            have = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise InputError(f"checkpoint.monitor {self.monitor!r} is not logged; there is: {have}")
        score, old = float(value), self.best_score
        if math.isfinite(score) and (old is None or (score < old if self.mode == "min" else score > old)):
            self.best_score = score
            self._save(trainer, BEST)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the final state, unless the last step already did."""
        self.signals.restore()
        if trainer.global_step != self._saved:
            self._save(trainer, LAST)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self.signals.restore()

    def _save(self, trainer: Any, name: str) -> None:
        if trainer.fast_dev_run:
            return
        if name == LAST:
            self._saved = trainer.global_step
        writer = trainer.strategy.checkpoint_io if not sharded(trainer.strategy) else None
        if trainer.world_size == 1 or not isinstance(writer, AtomicCheckpointIO):
            trainer.save_checkpoint(self.folder / name)
            return
        writer.defer = True
        trainer.save_checkpoint(self.folder / name)
        if failure := trainer.strategy.broadcast(writer.failure):
            error = InputError(failure)
            error.on_all_ranks = True  # type: ignore[attr-defined]
            raise error

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the best value so far."""
        self.best_score = state_dict["best_score"]
