#!/usr/bin/env python
"""Build a folder of pictures with masks of one class: from a COCO instances file, or from two loose folders.

    python data/prepare_people.py --annotations instances_val2017.json --images val2017 --out data/people
    python data/prepare_people.py --images photos --masks cutouts --out data/photos

Inputs are never changed. Stop it at any time; the same command goes on. Train on OUT with PeopleDataModule
(data/README.md).
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
    add("--images", type=Path, required=True, metavar="DIR", help="pictures")
    add("--masks", type=Path, metavar="DIR", help="their masks, paired by file name")
    add("--annotations", type=Path, metavar="FILE", help="or a COCO instances file that names the pictures")
    add("--out", type=Path, required=True, metavar="DIR", help="where pictures, masks, table and overview go")
    add("--category", nargs="+", default=["person"], help="COCO categories that count as the object")
    add("--crowd", choices=("exclude", "ignore"), default="exclude", help="drop pictures with a crowd, or mark it grey")
    add("--max_count", type=int, default=3, help="COCO: drop pictures with more objects; 0 for any number")
    add("--min_area", type=float, default=0.01, help="drop pictures whose objects cover a smaller part")
    add("--max_area", type=float, default=0.95, help="drop pictures whose objects cover a larger part")
    add("--negatives", type=float, default=0.0, help="part of the pictures without an object to keep, 0 to 1")
    add("--invert", action="store_true", help="the loose masks are white where the object is not")
    add("--size", type=int, default=0, help="shrink pictures to this shorter side; 0 copies the files as they are")
    add("--val_fraction", type=float, default=0.1, help="part of the pictures for validation")
    add("--test_fraction", type=float, default=0.0, help="part of the pictures for testing")
    add("--sheet", type=int, default=48, help="pictures on the overview; 0 for none")
    add("--limit", type=int, help="look at so many pictures only")
    add("--workers", type=int, help="threads, by default one a core")
    args = parser.parse_args(argv)
    if bool(args.masks) == bool(args.annotations):
        parser.error("give either --masks or --annotations")
    if args.invert and args.annotations:
        parser.error("--invert is for --masks")
    return args


def run(args: argparse.Namespace) -> int:
    """Build the folder and print what became of every picture."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from lit_insert.data.coco_masks import CocoRules
    from lit_insert.data.people_recipe import (
        CROWD_VALUE,
        PeopleSettings,
        build_people,
        coco_candidates,
        loose_candidates,
        report_of,
        write_sheet,
    )

    console = Console(stderr=True)
    rules = CocoRules(args.crowd, args.min_area, args.max_area, 1, args.max_count or None, args.negatives)
    settings = PeopleSettings(rules, args.size, args.invert, args.val_fraction, args.test_fraction)
    if args.annotations:
        candidates = coco_candidates(args.annotations, args.images, args.category, rules)
    else:
        candidates = loose_candidates(args.images, args.masks)
    candidates = candidates[: args.limit]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("pictures", total=len(candidates))
        summary = build_people(candidates, args.out, settings, args.workers, lambda: progress.advance(task))

    table = Table("outcome", "count")
    for split, count in sorted(summary.made.items()):
        table.add_row(split, str(count))
    for reason, count in summary.dropped.most_common():
        table.add_row(f"dropped: {reason}", str(count))
    console.print(table)
    for name, fault in summary.broken.items():
        console.print(f"broken: {name}: {fault}", style="yellow", soft_wrap=True)
    problems = report_of(args.out).problems()
    for problem in problems:
        hint = problem.replace("set invert: true", "use --invert, in another folder")
        console.print(f"warning: {hint}", style="yellow", soft_wrap=True)
    if args.annotations and args.crowd == "ignore":
        console.print(f"crowds are grey in the masks: give MaskFolder ignore_value: {CROWD_VALUE}", soft_wrap=True)
    sheet = write_sheet(args.out, args.sheet) if args.sheet else None
    print(
        f"{sum(summary.made.values())} pictures ({summary.new} new) in {args.out}" + (f", see {sheet}" if sheet else "")
    )
    return 0 if summary.made else 1


def main(argv: list[str] | None = None) -> int:
    """Parse, run, and turn mistakes and interrupts into exit codes."""
    args = parse(argv)
    from lit_insert.cli.scripts import run_script

    return run_script(lambda: run(args), "stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
