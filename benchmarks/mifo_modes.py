"""Which attention loss makes words look at their own instance, and draw it? Four modes, several seeds and scenes.

Every run learns the instances of one scene of the procedural world on the pocket base (``configs/mifo/pocket.yaml``),
with one of the four modes of the loss, and is measured on

- where the tokens look (`lit_insert.metrics.attention`): all cross-attention layers, both orders of the tokens, noise
  levels .15, .35 and .55; and the masked diffusion loss on the same noise for every run;
- whom they draw: pictures with the tokens in each other's boxes, drawn as the base likes to be sampled, each crop
  compared with all references (identity margin, in the space of the judge's features);
- what is left of the base: how many of the things that ordinary captions name are drawn (``--captions``).

``mifo_paper`` has the literal schedule: reward for a third of the first phase, then penalty alone. A run that is done
is not repeated: the same command goes on after a stop. ``python benchmarks/mifo_modes.py --out DIR --json``
"""

import argparse
import json
import logging
import math
import time
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lit_insert import pocket
from lit_insert.artifacts.atomic import atomic_file
from lit_insert.data.caption_scenes import CaptionSceneDataset
from lit_insert.data.instance_recipe import draw_scene, parse_thing, write_instances
from lit_insert.data.instances import MaskedInstanceDataModule
from lit_insert.diffusion.noise import step_generator
from lit_insert.diffusion.text import draw_prompts
from lit_insert.metrics.identity import IdentityMargin
from lit_insert.metrics.insertion import InsertionJudge, crop_around
from lit_insert.metrics.prompted import PLACES, PromptedObjects
from lit_insert.mifo.evaluate import attention_figures
from lit_insert.mifo.module import MifoModule
from lit_insert.mifo.objective import AttentionLoss, masked_error
from lit_insert.mifo.pipeline import SynthesisPipeline
from lit_insert.mifo.sources import TextParts, load_base
from lit_insert.mifo.tuning import Finetuning, Sketching
from lit_insert.training.schedules import WarmupCosine

MODES = ("none", "break_a_scene", "mifo_paper", "mifo_joint")
# Two or three things, the first three scenes look-alikes: one shape and colour, another texture.
SCENES: dict[str, tuple[str, ...]] = {
    "red circles": ("striped red circle", "checked red circle"),
    "blue stars": ("striped blue star", "blue star"),
    "green squares": ("striped green square", "checked green square", "green square"),
    "mixed two": ("orange ring", "striped purple cross"),
    "mixed three": ("yellow triangle", "checked cyan square", "white ring"),
}
ENDS = {"nowhere": "nowhere", "everywhere": "subjects"}  # while learning, and while drawing with boxes
PLACES_OF = {2: (0, 3), 3: (0, 3, 1)}
FIGURES = ("in_frac", "leak", "out", "in_mean", "iou", "masked_loss", "margin", "positive", "own", "cosine")
WORDS = ("base_both", "base_color", "base_shape")
SHORT = ("in_frac", "leak", "margin", "positive", "base_both")  # for each scene
Figures = dict[str, dict[str, list[float]]]  # of each mode: mean and standard error


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--base", default="pocket:text", help="text-to-image model of the procedural world")
    add("--modes", nargs="+", default=list(MODES), choices=MODES)
    add("--scenes", nargs="+", default=list(SCENES), choices=list(SCENES))
    add("--seeds", type=int, default=5, help="seeds for each mode and scene")
    add("--token_steps", type=int, default=100, help="steps of the first phase")
    add("--finetune_steps", type=int, default=800, help="steps of the second phase")
    add("--batch_size", type=int, default=4)
    add("--shift", type=float, default=1.0, help="largest random shift of the picture, in sides")
    add("--token_lr", type=float, default=3e-2)
    add("--finetune_lr", type=float, default=3e-4, help="at first; it falls to 0")
    add("--paper", nargs=2, type=float, default=[0.5, 1.0], metavar=("REWARD", "PENALTY"), help="weights of mifo_paper")
    add("--joint", nargs=2, type=float, default=[1.0, 1.0], metavar=("REWARD", "PENALTY"), help="weights of mifo_joint")
    add("--target", type=float, default=1.0, help="attention that mifo_joint's reward wants inside; mifo_paper's: 0.5")
    add("--prior_weight", type=float, default=0.4, help="weight of the class pictures")
    add("--max_normalised", type=float, default=0.1, help="weight of Break-A-Scene's loss")
    add("--layers", nargs="+", default=["all"], help="cross-attention layers of the loss")
    add("--peer_layers", nargs="+", default=[":8"], help="those of Break-A-Scene's loss: one resolution")
    add("--prior", type=int, default=64, help="class pictures, of training captions, drawn by the base; 0 for none")
    add("--bare", type=int, default=16, help="and class pictures of 'a photo of', which is all that a background reads")
    add("--class_guidance_scale", type=float, default=1.5, help="weight of the prompt in them")
    add("--class_dropout", type=float, default=0.33, help="share of them that come without caption")
    add("--end_tokens", default="nowhere", choices=list(ENDS), help="who sees a caption's end while it is learned")
    add("--hidden_class_ends", type=float, default=0.5, help="with nowhere: share of class captions without an end")
    add("--pictures", type=int, default=4, help="pictures with swapped boxes for each run")
    add("--captions", type=int, default=64, help="ordinary captions drawn after each run; 0 for none")
    add("--out", type=Path, required=True, help="folder for scenes and results; runs found in it are not repeated")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lit_insert.mifo.monitor"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    results = args.out / "results.json"
    done: dict[str, dict[str, float]] = json.loads(results.read_text()) if results.is_file() else {}
    judge = InsertionJudge.from_pretrained(pocket.path("judge")).eval()
    jobs = [(mode, scene, seed) for seed in range(args.seeds) for scene in args.scenes for mode in args.modes]
    if "base" not in done:
        done["base"] = before(args, judge)
    for number, (mode, scene, seed) in enumerate(jobs, 1):
        key = f"{mode}/{scene}/{seed}"
        if key not in done:
            started = time.perf_counter()
            done[key] = learn(args, judge, mode, scene, seed)
            done[key]["seconds"] = time.perf_counter() - started
            with atomic_file(results) as file:
                file.write_text(json.dumps(done, indent=1) + "\n")
            row = done[key]
            print(f"{number}/{len(jobs)} {key}: in_frac {row['in_frac']:.3f} leak {row['leak']:.3f} "
                  f"margin {row['margin']:.3f} {row['seconds']:.0f} s", flush=True)  # fmt: skip
    rows = {job: done["/".join(map(str, job))] for job in jobs}
    table = {mode: summary([row for (m, _, _), row in rows.items() if m == mode]) for mode in args.modes}
    by_scene = {
        scene: {m: summary([rows[m, scene, k] for k in range(args.seeds)]) for m in args.modes} for scene in args.scenes
    }
    if args.json:
        options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        print(json.dumps({"options": options, "base": done["base"], "modes": table, "scenes": by_scene}))
    else:
        show(table, by_scene, done["base"])


def scene_folder(args: argparse.Namespace, scene: str) -> Path:
    """The scene as a folder of instances, drawn once."""
    folder = args.out / "scenes" / scene.replace(" ", "_")
    if not (folder / "mask0.png").is_file():
        things = [parse_thing(text) for text in SCENES[scene]]
        number = (3 << 40) + list(SCENES).index(scene)  # no training, validation or test scene
        write_instances(*draw_scene(things, PLACES_OF[len(things)], index=number), folder)
    return folder


def class_captions(args: argparse.Namespace) -> list[str] | None:
    """What class pictures show: training captions, and nothing in particular."""
    drawn = CaptionSceneDataset("train", args.prior).batch(range(args.prior))["caption"] if args.prior else []
    return [*drawn, *["a photo of"] * args.bare] or None


def module_for(args: argparse.Namespace, mode: str, seed: int) -> MifoModule:
    """The module of one run."""
    reward, penalty = args.joint if mode == "mifo_joint" else args.paper
    loss = AttentionLoss(
        mode,
        reward_weight=args.max_normalised if mode == "break_a_scene" else reward,
        penalty_weight=penalty,
        reward_steps=args.token_steps // 3,
        target=args.target if mode == "mifo_joint" else 0.5,
        layers=args.layers if mode != "break_a_scene" else args.peer_layers,
    )
    return MifoModule(
        args.base,
        token_steps=args.token_steps,
        attention=loss,
        finetuning=Finetuning("full", "full"),
        prior_weight=args.prior_weight,
        class_guidance_scale=args.class_guidance_scale,
        end_tokens=args.end_tokens,
        hidden_class_ends=args.hidden_class_ends,
        sketching=Sketching(25, 3.0),
        optimizer=partial(torch.optim.AdamW, lr=args.token_lr, betas=(0.9, 0.99), fused=True),
        finetune_optimizer=partial(torch.optim.AdamW, lr=args.finetune_lr, betas=(0.9, 0.99), fused=True),
        finetune_lr_scheduler=lambda optimizer: WarmupCosine(optimizer, args.finetune_steps, 10, plateau=0.3),
        noise_seed=seed,
    )


def learn(args: argparse.Namespace, judge: InsertionJudge, mode: str, scene: str, seed: int) -> dict[str, float]:
    """Train one run and measure it."""
    data = MaskedInstanceDataModule(
        str(scene_folder(args, scene)), size=32, batch_size=args.batch_size, shift=args.shift, seed=seed,
        class_prompt=class_captions(args), class_dropout=args.class_dropout,
        class_folder=str(args.out / "class"), class_images=max(1, args.prior + args.bare),
    )  # fmt: skip
    module = module_for(args, mode, seed)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=args.token_steps + args.finetune_steps, gradient_clip_val=1.0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        default_root_dir=args.out,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    module.eval()
    return measure(args, judge, module, data)


@torch.no_grad()
def measure(
    args: argparse.Namespace, judge: InsertionJudge, module: MifoModule, data: MaskedInstanceDataModule
) -> dict[str, float]:
    """All figures of a trained module."""
    batch = next(iter(data.val_dataloader()))
    found = attention_figures(module, batch, module.figure_layers, step_generator(1, 0, 0))
    found["masked_loss"] = masked_loss(module, batch)
    rows = module.rows.rows[: data.num_instances]
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)
    found["cosine"] = float(cosine[~torch.eye(len(rows), dtype=torch.bool)].mean())
    found |= identity(args, judge, module, batch, seed=1000 * module.noise_seed)
    if args.captions:
        found |= words(args, judge, module)
    return found


def masked_loss(module: MifoModule, batch: dict[str, Any], draws: int = 16) -> float:
    """Masked diffusion error over fixed noise and evenly spaced noise levels."""
    scheduler = module.scheduler
    latents = module.vae.encode(batch["image"]).latent_dist.mode() * module.vae.config["scaling_factor"]
    ids = module.tokenizer(batch["caption"], padding="max_length", return_tensors="pt").input_ids
    states = module.text_encoder(ids).last_hidden_state
    total = 0.0
    for i in range(draws):
        noise = torch.randn(latents.shape, generator=step_generator(2, 0, i))
        t = torch.full((len(latents),), int((i + 0.5) / draws * scheduler.config.num_train_timesteps))
        wanted = noise if scheduler.config.prediction_type == "epsilon" else None
        wanted = scheduler.get_velocity(latents, noise, t) if wanted is None else wanted
        noised = scheduler.add_noise(latents, noise, t)
        predicted = module.unet(noised, t, states, encoder_attention_mask=module.visible(ids)).sample
        total += float(masked_error(predicted, wanted, batch["masks"]).mean()) / draws
    return total


def identity(
    args: argparse.Namespace, judge: InsertionJudge, module: MifoModule, batch: dict[str, Any], seed: int
) -> dict[str, float]:
    """Margins of things drawn in one another's places."""
    places = PLACES_OF[int((batch["instances"][0] >= 0).sum())]
    size = torch.tensor([batch["image"].shape[-1], batch["image"].shape[-2]])

    def crops(image: Tensor, order: tuple[int, ...]) -> Tensor:
        return torch.cat([crop_around(image[None], (torch.tensor(PLACES[p]) * size)[None]) for p in order])

    reference = crops(batch["image"][0], places)
    swapped = places[1:] + places[:1]
    boxes = {f"<asset{i}>": box_of(place) for i, place in enumerate(swapped)}
    parts = TextParts(module.unet, module.vae, module.text_encoder, module.tokenizer, module.scheduler)
    parts.settings = load_base(args.base).settings | {"end_tokens": ENDS[args.end_tokens]}
    pipe = SynthesisPipeline(parts)
    drawn = pipe(batch["caption"][0], boxes, num_images=args.pictures, seed=seed, output_type="pt").images
    metric = IdentityMargin(judge.trunk)
    for picture in drawn:
        metric.update(crops(picture * 2 - 1, swapped), reference)
    figures = metric.compute()
    return {name: figures[name] for name in ("margin", "positive", "own")}


def box_of(place: int, half: float = 0.15) -> list[float]:
    """The box of a thing at a place of the world, about as large as they are."""
    x, y = PLACES[place]
    return [max(0.0, x - half), max(0.0, y - half), min(1.0, x + half), min(1.0, y + half)]


def words(args: argparse.Namespace, judge: InsertionJudge, parts: Any) -> dict[str, float]:
    """Recall of what ordinary captions of one or two things name."""
    data = CaptionSceneDataset("test", args.captions, chances=(0.5, 0.5, 0.0)).batch(range(args.captions))
    pictures = draw_prompts(parts, data["caption"], step_generator(3, 0, 0), num_inference_steps=25, guidance_scale=3.0)
    metric = PromptedObjects(judge)
    metric.update(pictures, data["labels"])
    return {f"base_{name}": value for name, value in metric.compute().items() if f"base_{name}" in WORDS}


def before(args: argparse.Namespace, judge: InsertionJudge) -> dict[str, float]:
    """The base itself: how it draws captions, and where rows that have learned nothing look."""
    rows = []
    for scene in args.scenes:
        data = MaskedInstanceDataModule(str(scene_folder(args, scene)), size=32, batch_size=1)
        module = module_for(args, "none", 0)
        pl.Trainer(
            accelerator="cpu", max_steps=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=args.out,
        ).fit(module, datamodule=data)  # fmt: skip
        batch = next(iter(data.val_dataloader()))
        rows.append(attention_figures(module.eval(), batch, module.figure_layers, step_generator(1, 0, 0)))
    found = {name: float(np.mean([r[name] for r in rows])) for name in rows[0]}
    return found | (words(args, judge, module) if args.captions else {})


def summary(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Mean and standard error of each figure over runs."""
    names = [n for n in (*FIGURES, *WORDS, "seconds") if n in rows[0]]
    values = {n: np.array([r[n] for r in rows if math.isfinite(r[n])]) for n in names}
    return {n: [float(v.mean()), float(v.std(ddof=1) / math.sqrt(len(v))) if len(v) > 1 else 0.0]
            for n, v in values.items()}  # fmt: skip


def show(table: Figures, by_scene: dict[str, Figures], base: dict[str, float]) -> None:
    """Print mean ± standard error over all runs, then for each scene."""
    names = [n for n in next(iter(table.values())) if n != "seconds"]
    grid = Table("mode", *names)
    grid.add_row("before", *(f"{base[n]:.3f}" if n in base else "" for n in names))
    for mode, figures in table.items():
        grid.add_row(mode, *cells(figures, names))
    Console(width=200).print(grid)
    names = [n for n in SHORT if n in names]
    grid = Table("scene", "mode", *names)
    for scene, modes in by_scene.items():
        for mode, figures in modes.items():
            grid.add_row(scene, mode, *cells(figures, names))
    Console(width=200).print(grid)


def cells(figures: dict[str, list[float]], names: Iterable[str]) -> list[str]:
    """Mean ± standard error, as text."""
    return [f"{figures[n][0]:.3f}±{figures[n][1]:.3f}" for n in names]


if __name__ == "__main__":
    main()
