"""A run continued from any of its checkpoints ends with the very bits of the run that was left alone."""

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from toy import ToyData, ToyModule

from lit_insert.training.checkpoint import RunCheckpoint
from lit_insert.training.ema import EMA

STEPS = 9  # of 6-batch epochs: with 2 batches a step, that is three epochs


class KeepAll(RunCheckpoint):
    def _save(self, trainer: pl.Trainer, name: str) -> None:
        super()._save(trainer, name)
        if name == "last.ckpt":
            shutil.copy(self.folder / name, self.folder / f"{trainer.global_step}.ckpt")


def fit(folder: Path, resume: Path | None = None, workers: int = 0, **trainer: Any) -> dict[str, Any]:
    """Train the toy; the state that must agree: weights, optimiser, scheduler, average."""
    model = ToyModule(
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.02),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.02, total_steps=50),
    )
    options: dict[str, Any] = {"accelerator": "cpu", "max_steps": STEPS, "val_check_interval": 2} | trainer
    runner = pl.Trainer(
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EMA(0.9), KeepAll(every_n_steps=1)],
        num_sanity_val_steps=0,
        **options,
    )
    runner.fit(model, ToyData(num_workers=workers), ckpt_path=resume)
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    return {k: checkpoint[k] for k in keys} | {"ema": checkpoint["callbacks"]["EMA"], "drawn": model.drawn}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(
    ("accumulate", "validation", "workers"), [(1, 2, 0), (2, 2, 0), (4, 6, 0), (1, None, 0), (1, 3, 2)]
)
def test_from_every_step(tmp_path, accumulate, validation, workers):
    options: dict[str, Any] = {"accumulate_grad_batches": accumulate}
    options |= {"val_check_interval": validation} if validation else {"limit_val_batches": 0}
    whole = fit(tmp_path / "whole", **options)
    assert whole["global_step"] == STEPS
    for step in [2, 3] if workers else range(1, STEPS):
        part = tmp_path / f"part{step}"
        resumed = fit(part, tmp_path / f"whole/checkpoints/{step}.ckpt", workers, **options)
        for key in whole.keys() - {"drawn"}:
            assert same(whole[key], resumed[key]), f"{key} differs after resuming at step {step}"
