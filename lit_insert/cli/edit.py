"""``infer.py edit``: zero-shot edits with a consistency model."""

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_insert.artifacts.resolve import resolve_model
from lit_insert.cli.common import (
    free_name,
    picture_files,
    positive,
    progress_bar,
    thumbnail,
    write_json,
    write_picture,
)
from lit_insert.cli.sampling_options import add_sampling_options, labels_in_turn, load_pipeline, sampling_arguments
from lit_insert.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from lit_insert.consistency.pipeline import ConsistencyPipeline

_ROWS = 32  # of grid.png and of the report
_TASKS = ("inpaint", "colorize", "superres", "sdedit", "interpolate")
_OWN = ("sigma_start", "start", "repeats", "region", "patch", "frames")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.usage = "infer.py edit --task TASK --image PATH [--mask PATH] [--model MODEL] [--output PATH] [options]"
    what = parser.add_argument_group("what")
    what.add_argument("--task", choices=_TASKS, help=", ".join(_TASKS))
    what.add_argument("--image", metavar="PATH", help="photo, or a folder of photos, of any size")
    what.add_argument(
        "--mask",
        metavar="PATH",
        help="inpaint: white = generate, black = keep; one for all, or a folder of the same names",
    )
    what.add_argument("--to", metavar="PATH", help="interpolate: the other end; without --image and --to, two noises")
    how = add_sampling_options(parser, "8 (sdedit 2, interpolate 1)")
    how.add_argument("--num_images", metavar="N", type=positive, default=1, help="results for each photo")
    how.add_argument("--sigma_start", metavar="S", type=float, help="noise level to start from, instead of the task's")
    how.add_argument(
        "--start", choices=("empty", "surround"), help="inpaint: begin with a grey hole, or with the blurred surround"
    )
    how.add_argument("--repeats", metavar="N", type=positive, help="evaluations at every level, by default 1")
    how.add_argument(
        "--region",
        choices=("auto", "whole"),
        help="inpaint: work on the square around the hole, or on all of the photo",
    )
    how.add_argument("--patch", metavar="N", type=positive, help="superres: how many times larger, by default 4")
    how.add_argument("--frames", metavar="N", type=positive, help="interpolate: pictures from end to end, by default 8")
    out = parser.add_argument_group("output")
    out.add_argument("--output", default="out", metavar="PATH", help="folder; or, for a single result, a picture file")
    out.add_argument("--report", metavar="FILE", help="also write an HTML page of the results")


@dataclass
class Work:
    """Photos to edit, by the name of their results, and what became of them."""

    photos: dict[Path, str]
    masks: dict[Path, Path]
    folder: Path
    single: Path | None
    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    rows: "list[list[Image.Image]]" = field(default_factory=list)


def run(options: argparse.Namespace) -> int:
    """Make the edits; returns 0, or 1 if some photos failed.

    Raises:
        InputError: If nothing could be done at all.
    """
    work = _plan(options)
    resolve_model(options.model, default_pocket="generate")
    loaded = {path: _load(options, work, path) for path in list(work.photos)[:1]}  # mistakes should answer at once
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("loading the model"):
        pipeline = load_pipeline(options)
    try:
        with progress_bar(console) as progress:
            task = progress.add_task(options.task, total=len(work.photos))
            for index, path in enumerate(work.photos):
                try:
                    pictures = loaded.pop(path, None) or _load(options, work, path)
                    _edit(options, work, pipeline, path, pictures, index)
                except InputError as error:
                    if len(work.photos) == 1:
                        raise
                    work.failed.append({"image": str(path), "reason": " ".join(str(error).split())})
                progress.advance(task)
    finally:
        if work.done:
            _write_record(options, work)
    for failure in work.failed:
        print(f"failed: {failure['image']}: {failure['reason']}", file=sys.stderr)
    if not work.done:
        raise InputError(f"none of {len(work.photos)} photos could be edited; the first: {work.failed[0]['reason']}")
    print(f"{len(work.done)} pictures in {work.single or work.folder}")
    return 1 if work.failed else 0


def _plan(options: argparse.Namespace) -> Work:
    """Settle what is to be made and where; touches no picture."""
    from lit_insert.images import IMAGE_SUFFIXES

    if not options.task:
        raise InputError(f"give --task: {', '.join(_TASKS)}")
    between = options.task == "interpolate"
    if between != bool(options.to) and (options.to or options.image):
        raise InputError("--to and --image go together for interpolate" if between else f"{options.task} takes no --to")
    if not between and not options.image:
        raise InputError("give --image, a photo or a folder of photos")
    if (options.task == "inpaint") != bool(options.mask):
        raise InputError("inpaint needs --mask" if not options.mask else f"{options.task} takes no --mask")
    files = picture_files(options.image, "--image") if options.image else [Path("noise")]
    if between and (len(files) > 1 or (options.to and not Path(options.to).is_file())):
        raise InputError("interpolate goes from one picture to another; give two files")
    output = Path(options.output)
    is_file = output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir()
    if is_file and (between or len(files) * options.num_images > 1):
        raise InputError(f"--output {output} is one file for several results; give a folder")
    folder = output.parent if is_file else output
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder}: is a file; give a folder")
    masks = _masks(options.mask, files) if options.mask else {}
    taken: set[Path] = set()
    photos = {p: str(free_name(Path(p.stem), taken)) for p in files}
    work = Work(photos, masks, folder, output if is_file else None)
    inputs = {p.resolve() for p in (*files, *masks.values())}
    for name in photos.values():
        for target in _targets(options, work, name):
            if target.resolve() in inputs:
                raise InputError(f"--output: {target} would overwrite an input; give another folder")
    return work


def _masks(given: str, files: list[Path]) -> dict[Path, Path]:
    if not Path(given).is_dir():
        return dict.fromkeys(files, picture_files(given, "--mask")[0])
    by_stem = {p.stem: p for p in picture_files(given, "--mask")}
    if missing := [p for p in files if p.stem not in by_stem]:
        raise InputError(f"--mask {given}: no mask of the name of {missing[0]}")
    return {p: by_stem[p.stem] for p in files}


def _targets(options: argparse.Namespace, work: Work, name: str) -> list[Path]:
    count = (options.frames or 8) if options.task == "interpolate" else options.num_images
    if work.single is not None:
        return [work.single]
    return [work.folder / (f"{name}.png" if count == 1 else f"{name}_{k}.png") for k in range(count)]


def _load(options: argparse.Namespace, work: Work, path: Path) -> "list[Image.Image]":
    """The photo, and its mask or the other end."""
    from lit_insert.images import load_image

    if not options.image:
        return []
    other = [load_image(work.masks[path], mode="L")] if work.masks else []
    other += [load_image(options.to)] if options.to else []
    return [load_image(path), *other]


def _edit(
    options: argparse.Namespace,
    work: Work,
    pipeline: "ConsistencyPipeline",
    path: Path,
    pictures: "list[Image.Image]",
    index: int,
) -> None:
    """Edit one photo and write the results."""
    import torch

    targets = _targets(options, work, work.photos[path])
    between = options.task == "interpolate"
    first = index * options.num_images
    began = time.perf_counter()
    try:
        output = pipeline.edit(
            options.task,
            (pictures or None) if between else pictures[:1] * options.num_images,
            pictures[1] if work.masks else None,
            class_labels=labels_in_turn(options, first, len(targets)),
            seed=options.seed + first,
            batch_size=options.batch_size,
            **sampling_arguments(options),
            **{name: getattr(options, name) for name in _OWN if getattr(options, name) is not None},
        )
    except torch.OutOfMemoryError as error:
        raise InputError("out of memory; lower --batch_size or --num_images") from error
    seconds = round((time.perf_counter() - began) / len(targets), 4)
    for number, (target, result) in enumerate(zip(targets, output.images, strict=True)):
        write_picture(result, target)
        entry = {"image": str(path), "output": target.name, "number": number, "seed": options.seed + first + number}
        work.done.append({**entry, "size": list(result.size), "sigmas": output.sigmas, "seconds": seconds})
    if len(work.rows) < _ROWS:
        work.rows.append([thumbnail(p) for p in (*pictures, *output.images)])


def _write_record(options: argparse.Namespace, work: Work) -> None:
    """Write the JSON beside the results, and the grid and report for several."""
    from lit_insert import __version__
    from lit_insert.images import image_grid

    left_out = ("image", "mask", "to", "output", "report")
    settings = {k: v for k, v in vars(options).items() if k not in left_out and v is not None}
    record = {"lit_insert": __version__, "settings": settings, "results": work.done, "failed": work.failed}
    write_json(record, work.single.with_suffix(".json") if work.single else work.folder / "results.json")
    if work.single is None:
        cell = max(96, min(256, max(max(p.size) for row in work.rows for p in row)))
        write_picture(image_grid(work.rows, cell=cell), work.folder / "grid.png")
    if options.report:
        from lit_insert.report import Report

        page = Report(f"Edits: {options.task}", f"model {options.model}, seed {options.seed}")
        page.images(work.rows, cell_px=160)
        if work.failed:
            page.table(["photo", "reason"], [[f["image"], f["reason"]] for f in work.failed])
        page.table(["setting", "value"], [[k, str(v)] for k, v in settings.items()]).save(options.report)
