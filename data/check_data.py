#!/usr/bin/env python
"""Look a data set over: counts, broken files, pictures in two splits, four samples a split on a page.

    python data/check_data.py data/photos
    python data/check_data.py data/photos --clip openai/clip-vit-large-patch14 --json
    python data/check_data.py PIPE --masks PIPE_Masks

Exit code 0 if nothing is wrong, 1 if something is, 2 if there is no data set.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("path", type=Path, help="folder of triplets, of PIPE parquet files, or of pictures")
    add("--masks", type=Path, metavar="DIR", help="folder of PIPE_Masks, for PIPE parquet files")
    add("--report", type=Path, metavar="FILE", help="the page; check_NAME.html in this folder if not given")
    add("--clip", metavar="pocket|DIR|HUB", help="add the similarity of object, target and text for this CLIP")
    add("--json", action="store_true", help="print one JSON object as the last line")
    add("--workers", type=int, default=2, help="threads that decode (default 2)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Check, write the page, print the findings."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Table

    from lit_insert.data.check import check_data, report_of
    from lit_insert.data.folder import metadata_file, read_metadata
    from lit_insert.errors import InputError

    console = Console(stderr=True)
    clip: Any = None
    if args.clip:
        from lit_insert.data.similarity import Clip, clip_similarity

        clip = Clip(args.clip)
    columns = (SpinnerColumn(), TextColumn("{task.completed} samples opened"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("check", total=None)
        check = check_data(args.path, args.masks, args.workers, lambda: progress.advance(task))

    table = Table("split", "samples", "good", "pictures", "faults", title=f"{args.path} ({check.kind})")
    for split in check.splits:
        numbers = (split.count, split.good, len(split.pictures), len(split.faults))
        table.add_row(split.name, *map(str, numbers))
    console.print(table)
    for problem in check.problems:
        print(f"problem: {problem}", file=sys.stderr)
    for split in check.splits:
        for where, what in split.faults.items():
            print(f"fault: {split.name}: {where}: {what}", file=sys.stderr)

    similarity = {}
    if clip:
        if check.kind != "triplets":
            raise InputError("--clip compares triplets; give a folder of triplets")
        folders = [args.path / split.name for split in check.splits]
        records = [r for f in folders if metadata_file(f) and not check.problems for r in read_metadata(f)]
        similarity = clip_similarity(records, clip)
        table = Table("CLIP similarity", *next(iter(similarity.values()), {"n": 0}))
        for kind, numbers_of in similarity.items():
            table.add_row(kind, *(f"{v:g}" for v in numbers_of.values()))
        console.print(table)

    path = args.path.resolve()
    page = report_of(check, path, similarity).save(args.report or Path(f"check_{path.name}.html"))
    print(page)
    if args.json:
        print(json.dumps({**check.as_dict(), "similarity": similarity, "report": str(page)}))
    return 0 if check.ok else 1


def main(argv: list[str] | None = None) -> int:
    """Parse and run; a mistake in the input is one line."""
    args = parse(argv)
    from lit_insert.cli.scripts import run_script

    return run_script(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
