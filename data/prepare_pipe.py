#!/usr/bin/env python
"""Build a folder of insertion triplets: from pictures with masks, or from PIPE parquet.

    python data/prepare_pipe.py --images photos/images --masks photos/masks --out data/photos
    python data/prepare_pipe.py --pipe paint-by-inpaint/PIPE --pipe_masks paint-by-inpaint/PIPE_Masks --out data/pipe

Stop it at any time; the same command goes on. The result is what PipeTripletDataModule and
load_dataset("imagefolder") read (data/README.md).
"""

import argparse
import sys
from pathlib import Path


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--images", type=Path, metavar="DIR", help="pictures that contain an object")
    add("--masks", type=Path, metavar="DIR", help="its masks, one a picture, paired by file name")
    add("--pipe", metavar="DIR|HUB", help="PIPE instead: a folder of parquet files or a hub id")
    add("--pipe_masks", metavar="DIR|HUB", help="PIPE_Masks: a folder of parquet files or a hub id")
    add("--out", type=Path, required=True, metavar="DIR", help="where the triplets go")
    add("--limit", type=int, help="use only so many pictures (of PIPE: rows of each split)")
    add("--dataset", help="name of the collection in ids, by default the folder's name")
    add("--instruction", default="", help='what adding the object is called, such as "add a person"')
    add("--inpainter", metavar="DIR|HUB", help="diffusers inpainting pipeline; OpenCV's inpainting if not given")
    add("--prompt", default="background", help="what the inpainter should put in the object's place")
    add("--negative_prompt", default="person, animal, object", help="and what not")
    add("--steps", type=int, default=20, help="denoising steps of the inpainter")
    add("--dilation", type=float, default=0.02, help="growth of the mask before removing, by the shorter side")
    add("--size", type=int, default=512, help="shrink pictures to this shorter side; 0 keeps them")
    add("--format", choices=("png", "jpg"), default="png", help="of pictures that have to be encoded")
    add("--pad", type=float, nargs=2, default=(0.05, 0.10), metavar=("MIN", "MAX"), help="margin around the object")
    add(
        "--square",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="widen the object's picture to a square where there is room (CLIP keeps the central square only)",
    )
    add("--background", choices=("keep", "white", "grey"), default="keep", help="around the object, by the mask")
    add("--threshold", type=int, default=128, help="a mask pixel counts from this value, 1 to 255")
    add("--min_side", type=int, default=32, help="drop objects with a shorter side in pixels")
    add("--min_area", type=float, default=0.005, help="drop objects that cover less of the picture")
    add("--max_area", type=float, default=0.60, help="drop objects that cover more of the picture")
    add("--max_borders", type=int, default=2, help="drop objects that touch more borders")
    add("--val_fraction", type=float, default=0.05, help="part of the pictures for validation")
    add("--test_fraction", type=float, default=0.05, help="part for testing; PIPE keeps its own test split")
    add("--workers", type=int, help="threads, by default one a core")
    args = parser.parse_args(argv)
    folders, tables = (args.images, args.masks), (args.pipe, args.pipe_masks)
    if all(folders) == all(tables) or (any(folders) and any(tables)):
        parser.error("give either --images and --masks, or --pipe and --pipe_masks")
    if not 1 <= args.threshold <= 255:
        parser.error("--threshold must be 1 to 255")
    return args


def run(args: argparse.Namespace) -> int:
    """Build the folder and print what became of every candidate."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from lit_insert.data.candidates import Candidate, folder_candidates, pipe_candidates
    from lit_insert.data.crops import CropRules
    from lit_insert.data.recipe import Settings, build
    from lit_insert.data.removers import DiffusersRemover, OpenCVRemover, Remover

    console = Console(stderr=True)
    settings = Settings(
        CropRules(
            threshold=args.threshold,
            pad_min=args.pad[0],
            pad_max=args.pad[1],
            square=args.square,
            background=args.background,
            min_side=args.min_side,
            min_area=args.min_area,
            max_area=args.max_area,
            max_borders=args.max_borders,
        ),
        size=args.size,
        suffix=f".{args.format}",
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
    )
    remover: Remover = OpenCVRemover(args.dilation)
    if args.inpainter:
        remover = DiffusersRemover(
            args.inpainter, args.prompt, args.negative_prompt, args.steps, dilation=args.dilation
        )
    total = None
    if args.images:
        candidates, unpaired = folder_candidates(args.images, args.masks, args.dataset, args.instruction)
        if unpaired:
            console.print(f"without a partner: {len(unpaired)} ({', '.join(unpaired[:5])} …)", style="yellow")
        candidates = candidates[: args.limit]
        total = len(candidates)
        source: list[Candidate] | object = candidates
    else:
        source = pipe_candidates(args.pipe, args.pipe_masks, args.limit)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("triplets", total=total)
        workers = 1 if args.inpainter else args.workers
        summary = build(source, args.out, settings, remover, workers, lambda: progress.advance(task))

    table = Table("outcome", "count")
    for split, count in sorted(summary.made.items()):
        table.add_row(split, str(count))
    for reason, count in summary.dropped.most_common():
        table.add_row(f"dropped: {reason}", str(count))
    console.print(table)
    for name, fault in summary.broken.items():
        console.print(f"broken: {name}: {fault}", style="yellow", soft_wrap=True)
    print(f"{sum(summary.made.values())} triplets ({summary.new} new) in {args.out}")
    return 0 if summary.made else 1


def main(argv: list[str] | None = None) -> int:
    """Parse, run, and turn mistakes and interrupts into exit codes."""
    args = parse(argv)
    from lit_insert.cli.scripts import run_script

    return run_script(lambda: run(args), "stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
