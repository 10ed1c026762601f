"""Learning instances next to Break-A-Scene's own ``train.py``: seconds a step, and memory.

``--peer`` is a checkout of google/break-a-scene. Both sides train one tiny Stable Diffusion of random weights (four
levels, 512 px, 64x64 latents, 77 tokens) on one folder with three instances and class pictures, batch 1 and one class
picture, in bf16 autocast, each in processes of its own that take turns; both with Break-A-Scene's loss, ours also with
MIFO's. The peer's file is run as it is; what it needs of libraries of 2023 (moved names, the inner text model)
is put back around it. A step is everything between two optimiser steps, reading included; its time is the median over
rounds. Memory is the process' peak in a phase beyond what it held before it loaded the model.

``python benchmarks/mifo_throughput.py --peer ~/break-a-scene --json``
"""

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
import types
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ARMS = ("peer", "break_a_scene", "mifo_joint")


def main() -> None:
    """Run the benchmark, or one side of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="checkout of google/break-a-scene")
    parser.add_argument("--steps", type=int, default=5, help="steps of each phase; the first is not counted")
    parser.add_argument("--rounds", type=int, default=2, help="how often the sides take turns")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        run_side(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        rows: dict[str, list[dict[str, Any]]] = {arm: [] for arm in args.arms}
        for turn in range(args.rounds):
            for arm in args.arms:
                print(f"round {turn + 1}/{args.rounds}: {arm}", file=sys.stderr, flush=True)
                rows[arm].append(measured(args, arm, folder))
    table = {arm: summary(found) for arm, found in rows.items()}
    if args.json:
        print(json.dumps({"steps": args.steps, "rounds": args.rounds, "arms": table}))
        return
    for arm, figures in table.items():
        print(arm.ljust(16), "  ".join(f"{name} {value:.3f}" for name, value in figures.items()))


def measured(args: argparse.Namespace, arm: str, folder: str) -> dict[str, Any]:
    """One side in a process of its own."""
    command = [sys.executable, __file__, "--peer", str(args.peer.resolve()), "--steps", str(args.steps)]
    done = subprocess.run([*command, "--side", arm, "--work", folder], capture_output=True, text=True, check=False)
    result = Path(folder) / f"{arm}.json"
    if done.returncode or not result.is_file():
        raise SystemExit(f"{arm} failed:\n{done.stderr[-2000:]}")
    found = json.loads(result.read_text())
    result.unlink()
    return found


def summary(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over rounds of seconds a step and megabytes, for each phase."""
    found = {}
    for phase in ("words", "network"):
        for clock in ("wall", "cpu"):
            times = [t for r in rounds for t in r[phase][clock]]
            found[f"{phase} {clock} s/step"] = median(times)
        found[f"{phase} peak MB"] = median(r[phase]["peak"] for r in rounds)
    return found


def prepare(work: Path) -> None:
    """Write base, instances and class pictures."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from lit_insert.data.instance_recipe import draw_scene, parse_thing
    from lit_insert.pocket.words import word_tokenizer

    torch.manual_seed(0)
    words = word_tokenizer(max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=64, layers_per_block=1, block_out_channels=(16, 32, 32, 32), norm_num_groups=8,
        cross_attention_dim=64, attention_head_dim=2,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=4,
        sample_size=512, mid_block_add_attention=False,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=words, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(work / "base")  # fmt: skip
    things = [parse_thing(t) for t in ("striped red circle", "checked red circle", "blue ring")]
    image, masks = draw_scene(things, [0, 3, 1], size=512)
    folder = work / "instances"
    folder.mkdir()
    image.save(folder / "img.jpg", quality=95)
    from PIL import Image

    for i, mask in enumerate(masks):
        Image.fromarray(mask * 255).convert("RGB").save(folder / f"mask{i}.png")
    (work / "class").mkdir()
    for i in range(4):
        draw_scene([things[2]], [i], index=i, size=512)[0].save(work / "class" / f"{i}.jpg")


class Clock:
    """Notes the end of every optimiser step, and ends the process after the last."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.ends: list[tuple[float, float]] = []
        self.peaks: list[int] = []
        self.base = 0  # memory before the models are loaded, kB

    def note(self, *_: Any) -> None:
        """After an optimiser step."""
        self.ends.append((time.perf_counter(), time.process_time()))
        number, steps = len(self.ends), self.args.steps
        if number in (steps, 2 * steps):
            self.peaks.append(memory("VmHWM"))
        if number in (1, steps):
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        if number == 2 * steps:
            self.finish()

    def finish(self) -> None:
        """Write what was seen, and leave without what the trainer would save."""
        found = {}
        for i, phase in enumerate(("words", "network")):
            ends = self.ends[i * self.args.steps : (i + 1) * self.args.steps]
            pairs = list(pairwise(ends))
            found[phase] = {
                "wall": [b[0] - a[0] for a, b in pairs],
                "cpu": [b[1] - a[1] for a, b in pairs],
                "peak": (self.peaks[i] - self.base) / 1024,
            }
        (self.args.work / f"{self.args.side}.json").write_text(json.dumps(found))
        os._exit(0)


def memory(name: str) -> int:
    """A line of this process' status, in kB."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1])


def run_side(args: argparse.Namespace) -> None:
    """One side, timed from outside: neither knows of it."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    torch.set_num_threads(1)
    clock = Clock(args)
    register_optimizer_step_post_hook(clock.note)
    if args.side == "peer":
        run_peer(args, clock)
    else:
        run_ours(args, clock)


def run_peer(args: argparse.Namespace, clock: Clock) -> None:
    """The peer's ``train.py`` with the names it expects."""
    import accelerate
    import diffusers
    import huggingface_hub
    import transformers
    from diffusers.models.attention_processor import Attention

    for name in ("HfFolder", "Repository"):
        setattr(huggingface_hub, name, None)
    moved: Any = types.ModuleType("diffusers.models.cross_attention")
    moved.CrossAttention = Attention
    sys.modules[moved.__name__] = moved
    prepare_mask = Attention.prepare_attention_mask
    Attention.prepare_attention_mask = lambda self, mask, length, batch_size=1, **kw: prepare_mask(
        self, mask, length, batch_size, **kw
    )
    scores = Attention.get_attention_scores
    # The peer writes into them; on a GPU in half precision they are a copy anyway.
    Attention.get_attention_scores = lambda self, *a, **kw: scores(self, *a, **kw).clone()
    load = transformers.CLIPTextModel.from_pretrained.__func__

    def with_inner(cls: Any, *a: Any, **kw: Any) -> Any:
        model = load(cls, *a, **kw)
        model.__dict__["text_model"] = model  # it was a shell around this one
        return model

    transformers.CLIPTextModel.from_pretrained = classmethod(with_inner)
    start = accelerate.Accelerator.__init__
    accelerate.Accelerator.__init__ = lambda self, *a, logging_dir=None, log_with=None, **kw: start(self, *a, **kw)
    diffusers.utils.logging.set_verbosity_error()
    clock.base = memory("VmRSS")
    sys.path.insert(0, str(args.peer))
    sys.argv = [
        "train.py", "--pretrained_model_name_or_path", str(args.work / "base"), "--num_of_assets", "3",
        "--instance_data_dir", str(args.work / "instances"), "--class_data_dir", str(args.work / "class"),
        "--num_class_images", "4", "--output_dir", str(args.work / "out"), "--mixed_precision", "bf16",
        "--phase1_train_steps", str(args.steps), "--phase2_train_steps", str(args.steps + 1), "--seed", "0",
    ]  # fmt: skip
    runpy.run_path(str(args.peer / "train.py"), run_name="__main__")


def run_ours(args: argparse.Namespace, clock: Clock) -> None:
    """Our module under Lightning."""
    import lightning.pytorch as pl
    import torch

    from lit_insert.data.instances import MaskedInstanceDataModule
    from lit_insert.mifo.module import MifoModule
    from lit_insert.mifo.objective import AttentionLoss

    clock.base = memory("VmRSS")
    layers = [":16"] if args.side == "break_a_scene" else ["up:16", "up:32"]
    pl.seed_everything(0)
    module = MifoModule(
        str(args.work / "base"),
        token_steps=args.steps,
        attention=AttentionLoss(args.side, layers=layers, finetune_layers=[":16"]),
        prior_from_start=args.side == "break_a_scene",
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=5e-4, weight_decay=1e-2),
        finetune_optimizer=lambda groups: torch.optim.AdamW(groups, lr=2e-6, weight_decay=1e-2),
    )
    data = MaskedInstanceDataModule(
        str(args.work / "instances"), class_prompt="a photo at the beach", class_folder=str(args.work / "class"),
        class_images=4,
    )  # fmt: skip
    pl.Trainer(
        accelerator="cpu", max_steps=2 * args.steps + 1, precision="bf16-mixed", gradient_clip_val=1.0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        default_root_dir=args.work,
    ).fit(module, datamodule=data)  # fmt: skip


if __name__ == "__main__":
    main()
