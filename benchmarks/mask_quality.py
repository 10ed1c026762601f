"""How well do masks fit, on scenes or photos that were never trained on?

Held-out scenes of the procedural world, whose masks are exact, or a folder of photos with masks; beside controls that
have learnt nothing. Boundaries count as met within 2 pixels of the photo. Also how long one picture of 256 px takes,
after imports: loading the model, the first call, and the median of later ones.

``python benchmarks/mask_quality.py --json``
``python benchmarks/mask_quality.py --model runs/people --folder data/people --val_count 40 --report masks.html``
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lit_insert import MaskPipeline
from lit_insert.data.mask_folder import MaskFolder
from lit_insert.data.mask_scenes import MaskScenes
from lit_insert.data.mask_source import MaskSource
from lit_insert.mask_decoder.evaluate import (
    MaskEvaluation,
    evaluate_masks,
    nothing,
    photo,
    picture_rows,
    unlike_border,
)
from lit_insert.report import Report

COLUMNS = ("iou", "image_iou", "dice", "boundary_f", "presence_accuracy")
SHOWN = 8


def seconds_for_one(model: str, device: str) -> tuple[MaskPipeline, dict[str, float]]:
    """Load the model and time it on one scene of 256 px."""
    picture = photo(MaskScenes("test", 1, size=256).picture(0))
    began, cpu = time.perf_counter(), time.process_time()
    pipeline = MaskPipeline.from_pretrained(model).to(device)
    load = time.perf_counter() - began
    calls: list[float] = []
    for _ in range(6):
        began = time.perf_counter()
        pipeline(picture)
        calls.append(time.perf_counter() - began)
        if len(calls) == 1:
            cpu = time.process_time() - cpu
    return pipeline, {
        "load": round(load, 4),
        "first_call": round(calls[0], 4),
        "load_and_first_call": round(load + calls[0], 4),
        "load_and_first_call_of_cpu_time": round(cpu, 4),
        "later_call": round(median(calls[1:]), 4),
    }


def write_report(
    path: Path,
    title: str,
    predict: Any,
    source: MaskSource,
    results: dict[str, MaskEvaluation],
    seconds: dict[str, float],
) -> None:
    """An HTML page of the scores and of the best and the worst masks."""
    found = results["model"]
    report = Report("Mask quality", title)
    report.heading("Scores").table(["", *COLUMNS], [[k, *(r.scores[c] for c in COLUMNS)] for k, r in results.items()])
    report.text(
        "iou: over all pixels; image_iou and dice: means over pictures, an empty picture found empty counting 1; "
        "boundary_f: outlines within 2 pixels; presence_accuracy: whether there is anything at all."
    )
    header = ["IoU", "photo", "true mask", "found", "differences: false alarms red, misses blue"]
    for name, numbers in (("best", found.best(SHOWN)), ("worst", found.worst(SHOWN))):
        rows = picture_rows(predict, source, found, numbers)
        report.heading(f"The {len(rows)} {name}").images(rows, header=header, cell_px=192)
    report.heading("Seconds for one picture of 256 px").table(list(seconds), [list(seconds.values())])
    report.save(path)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="pocket", help="pocket, run, checkpoint or exported folder")
    parser.add_argument("--n", type=int, default=512, help="number of scenes")
    parser.add_argument("--size", type=int, help="of the scenes, pixels; by default what the network was trained at")
    parser.add_argument("--folder", help="photos and masks instead of scenes, as MaskFolder reads them")
    parser.add_argument(
        "--split", choices=["val", "test", "all"], help="by default test of the scenes, val of a folder"
    )
    parser.add_argument("--val_count", type=int, default=0, help="photos set aside for val, as in training")
    parser.add_argument("--test_count", type=int, default=0, help="photos set aside for test, as in training")
    parser.add_argument("--flip", action="store_true", help="also look at mirrored photos")
    parser.add_argument("--components", choices=["all", "largest"], default="all")
    parser.add_argument("--min_area", type=float, default=0.0)
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report", type=Path, help="also write an HTML page with the 8 best and the 8 worst")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()

    pipeline, seconds = seconds_for_one(args.model, args.device)
    source: MaskSource
    if args.folder:
        args.split = args.split or "val"
        source = MaskFolder(args.folder, args.split, val_count=args.val_count, test_count=args.test_count)
        title = f"{args.model}: {len(source)} {args.split} photos of {args.folder}"
    else:
        args.split, args.size = args.split or "test", args.size or pipeline.network.img_size[0]
        source = MaskScenes(args.split, args.n, size=args.size)
        title = f"{args.model}: {args.n} {args.split} scenes of {args.size} px"
    names = ("threshold", "flip", "components", "min_area", "batch_size")
    predict = partial(pipeline, **{name: getattr(args, name) for name in names})
    arms = {"model": predict, "control: empty": nothing, "control: unlike the border": unlike_border}
    results = {}
    began = time.perf_counter()
    with Progress(transient=True) as bar:
        task = bar.add_task("masking", total=len(source) * len(arms))
        for name, arm in arms.items():
            results[name] = evaluate_masks(
                arm, source, batch_size=args.batch_size, progress=lambda n: bar.advance(task, n)
            )
    table = Table(title=title)
    for name in ("", *COLUMNS):
        table.add_column(name)
    for name, result in results.items():
        table.add_row(name, *(f"{result.scores[c]:.4f}" for c in COLUMNS))
    Console(width=120).print(table)
    print(", ".join(f"{k.replace('_', ' ')} {v:.3f} s" for k, v in seconds.items()) + " for one picture of 256 px")
    if broken := results["model"].broken:
        print(f"{len(broken)} could not be read: {', '.join(broken[:5])}")
    if args.report:
        write_report(args.report, title, predict, source, results, seconds)
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        record = {"benchmark": "mask_quality", "settings": settings, "pictures": len(source), "seconds": seconds}
        scores = {name: result.scores for name, result in results.items()}
        weights = sum(p.numel() * p.element_size() for p in pipeline.network.parameters())
        print(
            json.dumps(
                {
                    **record,
                    "evaluation_seconds": round(time.perf_counter() - began, 1),
                    "threads": torch.get_num_threads(),
                    "weight_bytes": weights,
                    "scores": scores,
                    "broken": results["model"].broken,
                }
            )
        )


if __name__ == "__main__":
    main()
