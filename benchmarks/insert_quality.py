"""Is the right object inserted, where there is room, and is the rest left alone?

Inserts references into held-out scenes of the procedural world (no location, no mask) and lets a judge, trained on
ground truth, name what appeared. ``python benchmarks/insert_quality.py --json``
"""

import argparse
import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lit_insert import InsertPipeline
from lit_insert.data.scenes import SceneDataset
from lit_insert.embedding_optimizer.evaluate import evaluate_insertion
from lit_insert.images import image_grid, save_image

COLUMNS = ("shape", "color", "texture", "all", "found", "single", "clear", "background_psnr")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="pocket", help="pocket, run, checkpoint or exported folder")
    parser.add_argument("--n", type=int, default=512, help="number of scenes")
    parser.add_argument("--split", default="test", choices=["val", "test"], help="val for choosing settings")
    parser.add_argument("--seed", type=int, default=0, help="seed of the starting noise")
    parser.add_argument("--num_inference_steps", type=int, help="by default the model's own")
    parser.add_argument("--guidance_scale", type=float, help="by default the model's own")
    parser.add_argument("--image_guidance_scale", type=float, help="by default the model's own")
    parser.add_argument("--scheduler", help="short name; by default the model's own")
    parser.add_argument("--preserve_background", action="store_true", help="keep unchanged pixels as they were")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--grid", type=Path, help="also write a picture of the first rows")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()

    pipeline = InsertPipeline.from_pretrained(args.model)
    if args.scheduler:
        pipeline.set_scheduler(args.scheduler)
    for name, own in pipeline.sampling.items():
        if getattr(args, name) is None:
            setattr(args, name, own)
    pipeline.set_progress_bar_config(disable=True)
    dataset = SceneDataset(args.split, args.n)
    began = time.perf_counter()
    with Progress() as bar:
        task = bar.add_task("inserting", total=args.n)
        found = evaluate_insertion(
            pipeline,
            dataset,
            seed=args.seed,
            batch_size=args.batch_size,
            progress=lambda n: bar.advance(task, n),
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            image_guidance_scale=args.image_guidance_scale,
            preserve_background=args.preserve_background,
        )
    seconds = time.perf_counter() - began
    title = (
        f"{args.model}: {args.n} {args.split} scenes, {args.num_inference_steps} steps, "
        f"guidance {args.guidance_scale:g}/{args.image_guidance_scale:g}"
    )
    table = Table(title=title)
    for name in ("", *COLUMNS):
        table.add_column(name)
    for row, scores in found.scores.items():
        table.add_row(row, *(f"{scores[c]:.1f}" if "psnr" in c else f"{scores[c]:.3f}" for c in COLUMNS))
    Console(width=130).print(table)
    print(
        "shuffled, original: a model that follows the reference scores "
        + ", ".join(f"{c} {found.coincidence[c]:.3f}" for c in ("shape", "color", "texture"))
        + "\n(how often the two labels agree); chance over all kinds: shape 0.167, color 0.125, texture 0.333"
    )
    if args.grid:
        save_image(image_grid(found.rows), args.grid)
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        print(
            json.dumps(
                {
                    "benchmark": "insert_quality",
                    "settings": settings,
                    "seconds": round(seconds, 1),
                    "threads": torch.get_num_threads(),
                    "scores": found.scores,
                    "coincidence": found.coincidence,
                }
            )
        )


if __name__ == "__main__":
    main()
