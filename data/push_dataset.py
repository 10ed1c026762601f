#!/usr/bin/env python
"""Upload a folder of triplets to the hub, with a dataset card.

    python data/push_dataset.py data/photos owner/photos --license cc-by-4.0 --dry_run
    python data/push_dataset.py data/photos owner/photos --license cc-by-4.0

Everything is checked first; a data set with faults is not uploaded.
"""

import argparse
import sys
from pathlib import Path


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("path", type=Path, help="folder of triplets")
    add("repo", help="owner/name on the hub; made if it does not exist")
    add("--license", required=True, help="hub licence id of the pictures, such as cc-by-4.0")
    add("--source", default="", help="where the pictures come from, a sentence for the card")
    add("--public", action="store_true", help="make a new repository public (private if not given)")
    add("--dry_run", action="store_true", help="check, show the card and the files, upload nothing")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Check, write the card, upload or say what would be uploaded."""
    from lit_insert.artifacts.hub import push_dataset
    from lit_insert.data.card import dataset_card, write_dataset_card
    from lit_insert.data.check import check_data
    from lit_insert.errors import InputError

    check = check_data(args.path)
    if check.kind != "triplets":
        raise InputError(f"{args.path}: no triplets there; prepare them with data/prepare_pipe.py")
    if not check.ok:
        raise InputError(f"{args.path}: has faults; see data/check_data.py {args.path}")
    card = dataset_card(check, args.repo, args.license, args.source)
    plan = push_dataset(args.path, args.repo, dry_run=True)
    if args.dry_run:
        print(card)
        for name, size in plan.files.items():
            if name != "README.md":
                print(f"{size:>12,}  {name}")
        total = sum(plan.files.values())
        who = "public" if args.public else "private"
        print(f"would upload {len(plan.files)} files, {total:,} bytes, to {args.repo} ({who})")
        return 0
    write_dataset_card(args.path, card)
    print(push_dataset(args.path, args.repo, private=not args.public, message="Upload triplets").url)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Parse and run; a mistake in the input is one line."""
    args = parse(argv)
    from lit_insert.cli.scripts import run_script

    return run_script(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
