"""What a run leaves behind besides weights: ``run.json`` and ``metrics.jsonl``."""

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.training.base import batch_length
from lit_insert.training.stop import Interrupted

_PACKAGES = (
    "lit-insert",
    "torch",
    "torchvision",
    "lightning",
    "diffusers",
    "transformers",
    "peft",
    "datasets",
)


class JsonLines(Logger):
    """Appends one JSON object for each logged step to ``metrics.jsonl``.

    When a run continues from step s, lines of later steps, which it will repeat, are dropped.

    Args:
        path: The file.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """There is one a run."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: they stand in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a line; values that are not finite become null."""
        row = {k: float(f"{v:.7g}") if math.isfinite(v) else None for k, v in metrics.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop what was logged at or after a step, and a line that a kill cut short."""
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if int(json.loads(line)["step"]) < step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


class RunRecord(pl.Callback):
    """Writes ``run.json`` and logs samples a second.

    Args:
        folder: The run's folder.
        seed: What `seed_everything` was given.
        source: What the run started from (a checkpoint to resume, weights to start with), if anything.
    """

    def __init__(self, folder: str | Path, seed: int | None = None, source: str | None = None) -> None:
        self.path = Path(folder) / "run.json"
        self.seed, self.source = seed, source
        self._start = ""
        self._first = 0
        self._samples = 0
        self._clock = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the start."""
        self._start, self._first = _now(), trainer.global_step
        self._clock, self._samples = time.perf_counter(), 0
        for logger in trainer.loggers:
            if isinstance(logger, JsonLines):
                logger.rewind(trainer.global_step)
        self._write(trainer, pl_module, "running")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the rate since the last time it was logged, over all ranks."""
        self._samples += batch_length(batch) * trainer.world_size
        if trainer._logger_connector.should_update_logs:
            now = time.perf_counter()
            pl_module.log("train/samples_per_s", self._samples / (now - self._clock))
            self._clock, self._samples = now, 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the time spent on validation out of the rate."""
        self._clock, self._samples = time.perf_counter(), 0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record a good end."""
        self._write(trainer, pl_module, "finished")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Record how it ended otherwise."""
        if self._start:
            stopped = isinstance(exception, Interrupted | KeyboardInterrupt)
            with suppress(OSError):  # on a full disk, the exception under way is the one to tell
                self._write(trainer, pl_module, "interrupted" if stopped else "failed", exception)

    @rank_zero_only
    def _write(self, trainer: pl.Trainer, pl_module: Any, status: str, error: BaseException | None = None) -> None:
        part = {
            "start": self._start,
            "end": None if status == "running" else _now(),
            "from_step": self._first,
            "to_step": trainer.global_step,
            "status": status,
            "source": self.source,
            "argv": sys.argv,
        }
        if error is not None and status == "failed":
            part["error"] = " ".join(str(error).split())[:500] or type(error).__name__
        earlier = [p for p in _read(self.path).get("parts", []) if p.get("start") != self._start]
        record = {
            "status": status,
            "step": trainer.global_step,
            "parameters": sum(p.numel() for p in pl_module.parameters()),
            "trainable": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            "base_model": getattr(pl_module, "base_model", None),
            "seed": self.seed,
            "noise_seed": getattr(pl_module, "noise_seed", None),
            "precision": trainer.precision,
            "world_size": trainer.world_size,
            "device": device_name(trainer.strategy.root_device),
            "git": git_sha(),
            "python": platform.python_version(),
            "versions": versions(),
            "parts": [*earlier, part],
        }
        with atomic_file(self.path) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on; those not installed are left out."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_sha() -> str | None:
    """Commit of the checkout that the package runs from, with ``+`` if it has changes; None outside one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, timeout=10, check=False)
        return done.stdout.strip()

    try:
        sha = git("rev-parse", "HEAD")
        return (sha + ("+" if git("status", "--porcelain", "-uno") else "")) or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def device_name(device: torch.device) -> str:
    """What the device is called, for a person."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads)"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
