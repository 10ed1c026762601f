"""How much of a lost adapter comes back in a short fine-tuning, by what of the UNet is tuned with it?

Takes a trained insertion model, replaces its adapter by a new one of the same shape and fine-tunes: the adapter
alone, and with cross-attention's keys and values or all of cross-attention at a tenth of the learning rate, or LoRA on
it. Every arm starts from the same weights, has the same ``--minutes`` (or ``--steps``) and learning-rate schedule, and
is judged on held-out scenes by `evaluate_insertion`, as `insert_quality.py` judges the shipped model. The share
recovered is that of the distance from chance to the model as it was. With ``--minutes`` the number of steps follows
from a few steps of a module that is thrown away.

``python benchmarks/finetune_table.py --minutes 2 --json``
"""

import argparse
import json
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from bases import quiet_loading
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lit_insert import EmbeddingOptimizerModule, InsertPipeline, ScenesDataModule
from lit_insert.data import world
from lit_insert.data.scenes import SceneDataset
from lit_insert.diffusion.frozen import resolve_base
from lit_insert.embedding_optimizer.evaluate import evaluate_insertion
from lit_insert.embedding_optimizer.parts import UnetTuning
from lit_insert.embedding_optimizer.pipeline import SAMPLING
from lit_insert.training.ema import EMA, averaged
from lit_insert.training.schedules import WarmupCosine

ARMS = {
    "adapter": ("adapter only", UnetTuning(target="none")),
    "kv": ("+ attn2 k/v at 0.1x", UnetTuning(target="attn2.kv", lr_scale=0.1)),
    "attn2": ("+ attn2 at 0.1x", UnetTuning(target="attn2", lr_scale=0.1)),
    "lora": ("+ LoRA of rank 8", UnetTuning(target="lora", lr_scale=1.0, rank=8, alpha=8.0)),
}
CHANCE = {"color": 1 / len(world.COLORS), "shape": 1 / len(world.SHAPES)}
SHIPPED, BEFORE = "the model as it was", "adapter initialised anew"
_TIMED = 16


def new_module(base: str, tuning: UnetTuning, args: argparse.Namespace) -> EmbeddingOptimizerModule:
    """A training module of ``base`` whose adapter has the same shape as before and new weights."""
    file = Path(resolve_base(base)) / "embedding_optimizer" / "config.json"
    shape = {k: v for k, v in json.loads(file.read_text()).items() if not k.startswith("_") and v is not None}
    torch.manual_seed(args.seed)
    return EmbeddingOptimizerModule(
        base=base, adapter=shape, unet=tuning, mask_weight=4.0, conditioning_dropout=0.05, noise_seed=args.seed
    )


def fit(module: EmbeddingOptimizerModule, steps: int, ticker: "Ticker", args: argparse.Namespace) -> pl.Trainer:
    """Fine-tune for so many steps, at most ``args.minutes`` where those are the budget."""
    module.optimizer_factory = partial(torch.optim.AdamW, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    module.lr_scheduler_factory = partial(
        WarmupCosine, total_steps=steps, warmup_steps=min(50, math.ceil(steps / 10)), plateau=0.5, final_ratio=0.02
    )
    trainer = pl.Trainer(
        max_steps=steps,
        max_time=None if args.steps else {"seconds": 60 * args.minutes},
        accelerator="cpu",
        devices=1,
        callbacks=[EMA(decay=0.99), ticker],
        gradient_clip_val=1.0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, ScenesDataModule(batch_size=args.batch_size, train_length=1_000_000, seed=args.seed))
    return trainer


class Ticker(pl.Callback):
    """Notes when steps end, and passes their number on.

    Args:
        tick: Called with the number of steps done.
    """

    def __init__(self, tick: Callable[[int], None]) -> None:
        self.tick, self.times = tick, list[float]()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())
        self.tick(trainer.global_step)

    def pace(self) -> float:
        """Seconds of a step, the first half of the steps left out."""
        late = self.times[len(self.times) // 2 - 1 :]
        return (late[-1] - late[0]) / (len(late) - 1)


def steps_in_time(tuning: UnetTuning, args: argparse.Namespace) -> int:
    """How many steps fit into ``args.minutes``, found with a module that is thrown away."""
    ticker = Ticker(lambda step: None)
    fit(new_module(args.base, tuning, args), _TIMED, ticker, args)
    return max(1, int(0.95 * 60 * args.minutes / ticker.pace()))


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """Sampling settings of every row: the model's own, but for what the command line says."""
    given = {name: getattr(args, name) for name in SAMPLING}
    own = InsertPipeline.from_pretrained(args.base).sampling
    return {**own, **{name: value for name, value in given.items() if value is not None}}


def judged(model: str | Path, sampling: dict[str, Any], args: argparse.Namespace) -> dict[str, float]:
    """Colour and shape accuracy on held-out scenes, with the right reference and with another one."""
    pipeline = InsertPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.sampling = sampling
    scores = evaluate_insertion(
        pipeline,
        SceneDataset("test", args.n),
        batch_size=64,
        pictures=0,
        preserve_background=False,
    ).scores
    row, other = scores["insert"], scores["shuffled reference"]
    return {"color": row["color"], "shape": row["shape"], "color_shuffled": other["color"], "found": row["found"]}


def recovered(after: float, chance: float, shipped: float) -> float | None:
    """Share of the distance from chance to the shipped model's accuracy; None where there is none."""
    return (after - chance) / (shipped - chance) if shipped > chance else None


def run(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Rows of the table by name."""
    rows: dict[str, dict[str, Any]] = {}
    sampling = sampling_of(args)
    with Progress(transient=True) as bar, tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        task = bar.add_task("judging the model as it was", total=None)
        rows[SHIPPED] = judged(args.base, sampling, args)
        bar.update(task, description="judging the new adapter")
        new_module(args.base, UnetTuning(target="none"), args).export(work / "before")
        rows[BEFORE] = judged(work / "before", sampling, args)
        for arm in args.arms:
            title, tuning = ARMS[arm]
            bar.update(task, description=title, completed=0, total=None)
            steps = args.steps or steps_in_time(tuning, args)
            bar.update(task, total=steps)
            module = new_module(args.base, tuning, args)
            began = time.perf_counter()
            trainer = fit(module, steps, Ticker(lambda step: bar.update(task, completed=step)), args)
            spent = {"steps": trainer.global_step, "seconds": round(time.perf_counter() - began, 1)}
            with averaged(trainer):
                module.export(work / arm)
            bar.update(task, description=f"judging {title}", total=None)
            trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
            rows[title] = {"trainable": trainable, **spent, **judged(work / arm, sampling, args)}
            for name, chance in CHANCE.items():
                rows[title][f"{name}_recovered"] = recovered(rows[title][name], chance, rows[SHIPPED][name])
    return rows


def show(rows: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    """Print the table."""
    budget = f"{args.steps} steps" if args.steps else f"{args.minutes:g} minutes"
    table = Table(title=f"{args.base}: {budget} an arm, {args.n} held-out scenes")
    for heading in ("", "trainable", "steps", "colour", "recovered", "shape", "recovered", "colour, other reference"):
        table.add_column(heading)

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    for name, row in rows.items():
        table.add_row(
            name,
            shown(row.get("trainable"), ","),
            shown(row.get("steps"), ","),
            f"{row['color']:.3f}",
            shown(row.get("color_recovered"), ".0%"),
            f"{row['shape']:.3f}",
            shown(row.get("shape_recovered"), ".0%"),
            f"{row['color_shuffled']:.3f}",
        )
    table.add_row("chance", "", "", f"{CHANCE['color']:.3f}", "", f"{CHANCE['shape']:.3f}")
    Console(width=130).print(table)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base", default="pocket", help="pocket, or the exported folder of a trained model")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--minutes", type=float, default=2.0, help="training time of an arm")
    parser.add_argument("--steps", type=int, help="optimiser steps of an arm, in place of --minutes")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of the adapter")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--n", type=int, default=256, help="held-out scenes")
    parser.add_argument("--num_inference_steps", type=int, help="by default the model's own, as the next two")
    parser.add_argument("--guidance_scale", type=float)
    parser.add_argument("--image_guidance_scale", type=float)
    parser.add_argument("--seed", type=int, default=0, help="of the new adapter, the data and the noise")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    quiet_loading()
    rows = run(args)
    show(rows, args)
    if args.json:
        print(
            json.dumps(
                {
                    "benchmark": "finetune_table",
                    "settings": vars(args),
                    "threads": torch.get_num_threads(),
                    "chance": CHANCE,
                    "rows": rows,
                }
            )
        )


if __name__ == "__main__":
    main()
