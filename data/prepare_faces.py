#!/usr/bin/env python
"""Build a folder of faces with class-prefixed names: drop photos without one, add hats and sunglasses.

    python data/prepare_faces.py --images photos --out data/faces --hat cap.png --sunglasses glasses.png
    python data/prepare_faces.py --images photos --out data/faces64 --class_name ada --crop 1.8 --size 64

Inputs are never changed. Stop it at any time; the same command goes on. Train on OUT/images with MessiDataModule
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
    add("--images", type=Path, required=True, metavar="DIR", help="photos, searched with subfolders")
    add("--out", type=Path, required=True, metavar="DIR", help="where the faces, the table and the sheets go")
    add("--class_name", default="0", help="class of the pictures, the first part of their names")
    add(
        "--hat",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="pictures with transparency, or drawn; adds a variant",
    )
    add("--sunglasses", type=Path, nargs="+", default=[], metavar="FILE", help="the same for sunglasses")
    add("--hat_class", default="", help="class of the variants with a hat; --class_name if not given")
    add("--sunglasses_class", default="", help="class of the variants with sunglasses; --class_name if not given")
    add("--crop", type=float, default=0.0, help="cut a square around the face, in sides of its box; 0 cuts nothing")
    add("--size", type=int, default=0, help="shrink to this shorter side in pixels; 0 keeps them")
    add("--format", choices=("png", "jpg"), default="png", help="of pictures that have to be encoded")
    add("--max_side", type=int, default=1024, help="longer side in pixels at which faces are looked for")
    add("--min_box", type=int, default=30, help="smallest face in pixels at that size (Haar)")
    add("--min_weight", type=float, help="least weight of a face; 2 for Haar, 0.8 for a network if not given")
    add("--min_ratio", type=float, default=0.10, help="least side of a face, by the shorter side of the picture")
    add("--max_faces", type=int, default=3, help="drop pictures with more faces; 0 for any number")
    add("--require_eyes", action="store_true", help="drop faces whose eyes are not both found")
    add("--detector", type=Path, metavar="ONNX", help="network for OpenCV's FaceDetectorYN instead of Haar cascades")
    add("--recogniser", type=Path, metavar="ONNX", help="network for OpenCV's FaceRecognizerSF; needs --person")
    add("--person", type=Path, metavar="FILE|DIR", help="pictures of the person to keep")
    add("--min_similarity", type=float, default=0.363, help="least similarity to the person, -1 to 1")
    add("--sheet", type=int, default=60, help="photos on a contact sheet; 0 for no sheets")
    add("--limit", type=int, help="look at so many photos only")
    args = parser.parse_args(argv)
    if bool(args.recogniser) != bool(args.person):
        parser.error("--recogniser and --person go together")
    if args.recogniser and not args.detector:
        parser.error("--recogniser needs the landmarks of a --detector")
    return args


def run(args: argparse.Namespace) -> int:
    """Build the folder and print what became of every photo."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from lit_insert.data.faces.build import FaceSettings, build_faces
    from lit_insert.data.faces.decisions import FaceRules
    from lit_insert.data.faces.detection import FaceDetector, HaarDetector, OnnxDetector, OnnxRecogniser
    from lit_insert.data.faces.sheets import write_sheets
    from lit_insert.data.faces.sprites import Sprite

    settings = FaceSettings(
        FaceRules(
            min_weight=args.min_weight if args.min_weight is not None else 0.8 if args.detector else 2.0,
            min_ratio=args.min_ratio,
            max_faces=args.max_faces,
            require_eyes=args.require_eyes,
            min_similarity=args.min_similarity,
        ),
        class_name=args.class_name,
        hat_class=args.hat_class,
        sunglasses_class=args.sunglasses_class,
        crop=args.crop,
        size=args.size,
        suffix=f".{args.format}",
    )
    detector: FaceDetector
    if args.detector:
        detector = OnnxDetector(args.detector, args.max_side)
    else:
        detector = HaarDetector(args.max_side, args.min_box)
    recogniser = OnnxRecogniser(args.recogniser, args.person, detector) if args.recogniser else None
    sprites = [Sprite(p, "hat") for p in args.hat] + [Sprite(p, "sunglasses") for p in args.sunglasses]
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:

        def tick(done: int, total: int) -> None:
            task = progress.task_ids[0] if progress.task_ids else progress.add_task("photos")
            progress.update(task, completed=done, total=total)

        summary = build_faces(args.images, args.out, settings, detector, recogniser, sprites, args.limit, tick)
    if args.sheet:
        write_sheets(args.images, args.out, summary.decisions, args.sheet)
    kept = [d for d in summary.decisions.values() if d.kept]
    table = Table("outcome", "count")
    table.add_row("kept", str(len(kept)))
    for reason, count in summary.reasons.most_common():
        table.add_row(f"dropped: {reason}", str(count))
    console.print(table)
    pictures = sum(len(d.files) for d in kept)
    print(
        f"{len(kept)} of {len(summary.decisions)} photos ({summary.new} new), {pictures} pictures in {args.out}/images"
    )
    return 0 if kept else 1


def main(argv: list[str] | None = None) -> int:
    """Parse, run, and turn mistakes and interrupts into exit codes."""
    args = parse(argv)
    from lit_insert.cli.scripts import run_script

    return run_script(lambda: run(args), "stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
