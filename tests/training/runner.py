"""A Trainer on the toy, within the test's own process."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from toy import ToyData, ToyModule


def toy(**model: Any) -> ToyModule:
    """The toy with an optimiser that moves."""
    return ToyModule(optimizer=lambda p: torch.optim.AdamW(p, lr=0.02), **model)


def trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """A quiet CPU trainer."""
    return pl.Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        **(
            {
                "accelerator": "cpu",
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "enable_checkpointing": bool(callbacks and hasattr(callbacks[-1], "best_model_path")),
                "num_sanity_val_steps": 0,
                "max_steps": 6,
            }
            | options
        ),
    )


def fit(folder: Path, *callbacks: pl.Callback, model: Any = None, data: Any = None, ckpt: Any = None, **options: Any):
    """Fit the toy; returns (trainer, model)."""
    model = model or toy()
    runner = trainer(folder, *callbacks, **options)
    runner.fit(model, data or ToyData(), ckpt_path=ckpt)
    return runner, model
