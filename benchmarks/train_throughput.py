"""Training speed next to diffusers' ``train_instruct_pix2pix.py``, run as it is.

Both train the whole UNet of one base of random weights on the same pictures, at the same batch size, resolution and
precision: AdamW, gradients clipped to norm 1, conditioning dropout 0.05, EMA of what trains, flips, pictures read in
the training process. Ours has torch's fused AdamW, as our configs do; the peer has no option for it (``--no_fused``
leaves it out). The peer embeds its prompts with CLIP's text model; ours embeds reference pictures with CLIP's
vision model and trains the adapter besides. With the cache, our VAE and CLIP ran once, before training.

A run is one process: ``python train.py fit ...`` with a written YAML, or the peer's script. Both write a TensorBoard
event after every optimiser step, and the time of a step is that between two events: reading and augmenting the
batch, encoding, forward, backward, optimiser, EMA, logging. Starting up and saving are not in it. The first steps of
a run (``--warmup``) are left out; a run counts with its median step. The runs alternate, ``--repeats`` rounds of all
of them; ratios are taken within a round, and their median is given with the smallest and the largest.

``python benchmarks/train_throughput.py --peer ~/diffusers --json``
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from bases import SIZES, Size, quiet_loading, write_base
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_insert.data.scenes import SceneDataset
from lit_insert.embedding_optimizer.evaluate import references
from lit_insert.images import to_pil

ROOT = Path(__file__).parents[1]
PEER = Path("examples/instruct_pix2pix/train_instruct_pix2pix.py")
TITLES = {
    "peer": "diffusers, whole UNet",
    "ours": "ours, whole UNet and adapter",
    "cached": "ours, the same, feature cache",
    "attn2": "ours, attn2 and adapter",
    "attn2_cached": "ours, the same, feature cache",
}


def write_triplets(folder: Path, size: Size, count: int) -> None:
    """Procedural triplets as JPEG files: ``ours/`` in this package's layout, ``peer/`` as an image folder."""
    side = min(max(size.pixels, 32), 128)
    for name in ("ours/train", "peer"):
        (folder / name).mkdir(parents=True)
    rows: dict[str, list[dict[str, str]]] = {"ours/train": [], "peer": []}
    dataset = SceneDataset("train", count, size=side, object_size=side)
    for start in range(0, count, 64):
        batch = dataset.batch(range(start, min(start + 64, count)))
        pictures = zip(batch["source"], batch["target"], references(dataset, batch), batch["mask"], strict=True)
        for at, (source, target, thing, mask) in enumerate(pictures):
            stem = f"{start + at:05d}"
            drawn = {
                "original_image": to_pil(source),
                "target_image": to_pil(target),
                "object_image": thing,
                "mask": to_pil(mask.expand(3, -1, -1) * 2 - 1).convert("L"),
            }
            names = {}
            for column, picture in drawn.items():
                name = names[f"{column}_file_name"] = f"{stem}-{column}.{'png' if column == 'mask' else 'jpg'}"
                resized = picture.resize((size.pixels, size.pixels), Image.Resampling.BICUBIC)
                resized.save(folder / "ours/train" / name, quality=92)
                if column in ("original_image", "target_image"):
                    os.link(folder / "ours/train" / name, folder / "peer" / name)
            said = batch["instruction"][at]
            rows["ours/train"].append({"triplet_id": stem, **names, "instruction": said})
            # The peer decodes every picture that its table names, so its table has the two that it uses.
            kept = {k: v for k, v in names.items() if (folder / "peer" / v).exists()}
            rows["peer"].append({**kept, "instruction": said})
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name / "metadata.jsonl").write_text(text, encoding="utf-8")


def our_config(arm: str, work: Path, size: Size, args: argparse.Namespace) -> dict[str, Any]:
    """The configuration that is like the peer's, as ``train.py`` takes it."""
    base = str(work / "base")
    return {
        "model": {
            "class_path": "lit_insert.embedding_optimizer.module.EmbeddingOptimizerModule",
            "init_args": {
                "base": base,
                "adapter": {"num_tokens": size.tokens, "heads": 4},
                "unet": {"target": "attn2" if arm.startswith("attn2") else "all"},
                "conditioning_dropout": 0.05,
                "feature_cache": str(work / "cache") if arm.endswith("cached") else None,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-5, "fused": args.fused}},
            },
        },
        "data": {
            "class_path": "lit_insert.data.pipe.PipeTripletDataModule",
            "init_args": {
                "path": str(work / "data/ours"),
                "batch_size": args.batch_size or size.batch,
                "num_workers": 0,
                "size": size.pixels,
                "image_processor": base,
                "augment": "flip",
                "augment_reference": False,
            },
        },
        "trainer": {
            "accelerator": args.device,
            "devices": 1,
            "max_steps": args.steps,
            "precision": "bf16-mixed" if args.precision == "bf16" else "32-true",
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            "limit_val_batches": 0,
        },
        "checkpoint": {"every_n_steps": 0, "monitor": None},
        "samples": {"every_n_steps": 0},
        "ema": {"decay": 0.9999 if args.ema else 0.0},
    }


def command(arm: str, work: Path, out: Path, size: Size, args: argparse.Namespace) -> list[str]:
    """The command line of one run."""
    if arm != "peer":
        config = out.with_suffix(".yaml")
        config.write_text(yaml.safe_dump(our_config(arm, work, size, args)), encoding="utf-8")
        return [str(ROOT / "train.py"), "fit", "--config", str(config), "--out", str(out)]
    options = {
        "pretrained_model_name_or_path": work / "base",
        "train_data_dir": work / "data/peer",
        "original_image_column": "original_image",
        "edited_image_column": "target_image",
        "edit_prompt_column": "instruction",
        "cache_dir": work / "hf",
        "output_dir": out,
        "resolution": size.pixels,
        "train_batch_size": args.batch_size or size.batch,
        "max_train_steps": args.steps,
        "learning_rate": 1e-5,
        "conditioning_dropout_prob": 0.05,
        "mixed_precision": "bf16" if args.precision == "bf16" else "no",
        "dataloader_num_workers": 0,
        "seed": 0,
    }
    flags = ["--random_flip", *(["--use_ema"] if args.ema else [])]
    return [str(args.peer), *(f"--{name}={value}" for name, value in options.items()), *flags]


def run(arm: str, work: Path, out: Path, size: Size, args: argparse.Namespace) -> float:
    """Train once; the median step in seconds.

    Raises:
        RuntimeError: If the process fails, with the end of what it said.
    """
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": str(args.device == "cpu").lower(),
        "OMP_NUM_THREADS": str(args.threads),
    }
    line = [sys.executable, *command(arm, work, out, size, args)]
    done = subprocess.run(line, cwd=work, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{arm} failed:\n" + "\n".join((done.stdout + done.stderr).splitlines()[-20:]))
    steps = step_seconds(out, "train_loss" if arm == "peer" else "train/loss")
    if len(steps) < args.steps - 1:
        raise RuntimeError(f"{arm}: {len(steps)} steps between events, {args.steps - 1} expected")
    return median(steps[args.warmup :])


def step_seconds(out: Path, tag: str) -> list[float]:
    """Seconds between the TensorBoard events of one scalar, in order, from the event files below a folder."""
    times: list[tuple[int, float]] = []
    for folder in sorted({file.parent for file in out.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        if tag in events.Tags()["scalars"]:
            times += [(event.step, event.wall_time) for event in events.Scalars(tag)]
    walls = [wall for _, wall in sorted(times)]
    return [later - earlier for earlier, later in pairwise(walls)]


def measure(name: str, arms: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """All runs of one size; medians, samples per second and ratios."""
    size, medians = SIZES[name], {arm: [] for arm in arms}
    batch = args.batch_size or size.batch
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as bar:
        work = Path(folder)
        write_base(work / "base", size)
        write_triplets(work / "data", size, args.steps * batch)
        task = bar.add_task(name, total=args.repeats * len(arms))
        for repeat in range(args.repeats):
            for arm in arms:
                medians[arm].append(run(arm, work, work / f"{arm}-{repeat}", size, args))
                bar.advance(task)
    result: dict[str, Any] = {"pixels": size.pixels, "batch_size": batch, "arms": {}, "ratios": {}}
    for arm, values in medians.items():
        result["arms"][arm] = {
            "step_seconds": round(median(values), 5),
            "samples_per_second": round(batch / median(values), 3),
            "step_seconds_of_runs": [round(v, 5) for v in values],
        }
    for arm, base in (("ours", "peer"), ("cached", "peer"), ("cached", "ours"), ("attn2_cached", "attn2")):
        if arm in medians and base in medians:
            ratios = [b / a for a, b in zip(medians[arm], medians[base], strict=True)]
            values = {"median": median(ratios), "min": min(ratios), "max": max(ratios)}
            result["ratios"][f"{arm}/{base}"] = {k: round(v, 3) for k, v in values.items()}
    return result


def show(name: str, result: dict[str, Any]) -> None:
    """Print one size's table."""
    table = Table(title=f"{name}: {result['pixels']} px, batch {result['batch_size']}")
    for heading in ("", "step, ms", "samples/s", "x peer", "x ours uncached"):
        table.add_column(heading)
    for arm, row in result["arms"].items():

        def ratio(base: str, arm: str = arm) -> str:
            found = result["ratios"].get(f"{arm}/{base}")
            return f"{found['median']:.2f} ({found['min']:.2f}-{found['max']:.2f})" if found else ""

        milliseconds = f"{1000 * row['step_seconds']:.1f}"
        own = "attn2" if arm == "attn2_cached" else "ours"
        table.add_row(TITLES[arm], milliseconds, f"{row['samples_per_second']:.2f}", ratio("peer"), ratio(own))
    Console(width=120).print(table)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peer", type=Path, help="checkout of diffusers, or its train_instruct_pix2pix.py")
    parser.add_argument("--sizes", nargs="+", default=["quarter", "pocket"], choices=list(SIZES))
    parser.add_argument("--steps", type=int, default=30, help="optimiser steps of a run")
    parser.add_argument("--warmup", type=int, default=5, help="steps at the start that do not count")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--batch_size", type=int, help="by default 4, and 32 for pocket")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of a run")
    parser.add_argument("--attn2", action="store_true", help="also our default, which tunes attn2 instead of all")
    parser.add_argument("--no_fused", dest="fused", action="store_false", help="ours without torch's fused AdamW")
    parser.add_argument("--no_ema", dest="ema", action="store_false", help="neither keeps an average")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    if args.peer is not None and args.peer.is_dir():
        args.peer = args.peer / PEER
    if args.peer is not None and not args.peer.is_file():
        parser.error(f"--peer {args.peer}: no such file; give a checkout of diffusers or the script itself")
    if not 0 <= args.warmup < args.steps - 1:
        parser.error(f"--warmup {args.warmup}: leaves no steps of {args.steps}")
    args.peer = args.peer and args.peer.resolve()
    quiet_loading()
    arms = [*(["peer"] if args.peer else []), "ours", "cached", *(["attn2", "attn2_cached"] if args.attn2 else [])]
    results = {}
    for name in args.sizes:
        results[name] = measure(name, arms, args)
        show(name, results[name])
    if args.json:
        settings = {**vars(args), "peer": str(args.peer.name) if args.peer else None}
        device = torch.cuda.get_device_name() if args.device == "gpu" else "cpu"
        print(json.dumps({"benchmark": "train_throughput", "settings": settings, "device": device, "sizes": results}))


if __name__ == "__main__":
    main()
