"""``infer.py insert``: objects of pictures into scenes, one pair or thousands."""

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_insert.artifacts.resolve import resolve_model
from lit_insert.cli.common import (
    add_model_options,
    device_name,
    move,
    positive,
    progress_bar,
    quiet_libraries,
    thumbnail,
    write_json,
    write_picture,
)
from lit_insert.cli.insert_pairs import Pair, pairs_from_csv, pairs_from_paths
from lit_insert.diffusion.schedulers import SCHEDULERS
from lit_insert.errors import InputError

if TYPE_CHECKING:
    from PIL import Image
    from rich.progress import Progress, TaskID

    from lit_insert.embedding_optimizer.pipeline import InsertPipeline

_GRID_ROWS = 32  # of grid.png and of the report
_FORMATS = ("png", "jpg", "webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.usage = "infer.py insert --image PATH --object PATH [--model MODEL] [--output PATH] [options]"
    what = parser.add_argument_group("what")
    what.add_argument("--image", metavar="PATH", help="scene, or a folder of scenes")
    what.add_argument("--object", metavar="PATH", help="picture of the object, or a folder; may have alpha")
    what.add_argument(
        "--pairs",
        choices=("name", "all"),
        default="name",
        help="two folders: pair files of one name, or put every object into every scene",
    )
    what.add_argument("--csv", metavar="FILE", help="pairs from a table with columns image,object[,output,seed]")
    auto = "float16 on an accelerator, float32 on the CPU"
    add_model_options(parser, batch_size=4, batch_help="pairs sampled at once", auto=auto)
    how = parser.add_argument_group("how")
    how.add_argument(
        "--num_inference_steps", metavar="N", type=positive, help="denoising steps (default: the model's own)"
    )
    how.add_argument(
        "--guidance_scale", metavar="S", type=float, help="how closely to follow the object (default: the model's own)"
    )
    how.add_argument(
        "--image_guidance_scale",
        metavar="S",
        type=float,
        help="how closely to keep the scene (default: the model's own)",
    )
    how.add_argument(
        "--scheduler",
        metavar="NAME",
        choices=tuple(SCHEDULERS),
        help=f"{', '.join(SCHEDULERS)}; by default the model's own",
    )
    how.add_argument("--seed", metavar="N", type=int, default=0, help="of the noise; the same for every pair")
    how.add_argument("--num_images", metavar="N", type=positive, default=1, help="results for each pair")
    how.add_argument(
        "--processing_resolution",
        metavar="PX",
        type=positive,
        help="work on about PX*PX pixels at the photo's aspect; by default what the model was trained on",
    )
    how.add_argument(
        "--height", metavar="PX", type=positive, help="working height; by default from the model and the aspect"
    )
    how.add_argument("--width", metavar="PX", type=positive, help="working width")
    how.add_argument(
        "--no_preserve_background",
        action="store_true",
        help="write the decoder's picture as it is, instead of the photo's own pixels where nothing changed",
    )
    out = parser.add_argument_group("output")
    out.add_argument("--output", default="out", metavar="PATH", help="folder; or, for a single result, a picture file")
    out.add_argument("--format", choices=_FORMATS, default="png", help="of the results in a folder")
    out.add_argument("--report", metavar="FILE", help="also write an HTML page of the results")


@dataclass
class Work:
    """Pairs to do, and what became of them."""

    pairs: list[Pair]
    folder: Path
    single: Path | None
    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    rows: "list[list[Image.Image]]" = field(default_factory=list)

    def fail(self, pair: Pair, reason: object) -> None:
        """Note a pair that could not be made."""
        text = " ".join(str(reason).split())
        self.failed.append({"image": str(pair.image), "object": str(pair.object), "reason": text})


def run(options: argparse.Namespace) -> int:
    """Make the insertions; returns 0, or 1 if some pairs failed.

    Raises:
        InputError: If nothing could be made at all.
    """
    work = _plan(options)
    resolve_model(options.model)
    loaded = _load(work, work.pairs[: options.batch_size])  # before torch: mistakes should answer at once
    if work.failed and len(work.pairs) == 1:
        raise InputError(work.failed[0]["reason"])
    try:
        _insert_all(options, work, loaded)
    finally:
        if work.done:
            _write_record(options, work)
    for failure in work.failed:
        print(f"failed: {failure['image']} + {failure['object']}: {failure['reason']}", file=sys.stderr)
    if not work.done:
        raise InputError(f"none of {len(work.pairs)} pairs could be made; the first: {work.failed[0]['reason']}")
    where = work.single or work.folder
    print(f"{len(work.done)} pictures of {len(work.pairs) - len(work.failed)} pairs in {where}")
    if work.failed:
        print(f"error: {len(work.failed)} of {len(work.pairs)} pairs failed", file=sys.stderr)
        return 1
    return 0


def _plan(options: argparse.Namespace) -> Work:
    """Settle what is to be made and where; touches no picture."""
    from lit_insert.images import IMAGE_SUFFIXES

    output = Path(options.output)
    is_file = output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir()
    suffix = output.suffix if is_file else f".{options.format}"
    if options.csv:
        if options.image or options.object:
            raise InputError("--csv names the pictures itself; leave out --image and --object")
        pairs = pairs_from_csv(options.csv, suffix, options.seed)
    elif options.image and options.object:
        pairs = pairs_from_paths(options.image, options.object, options.pairs, suffix, options.seed)
    else:
        missing = "--object" if options.image else "--image" if options.object else "--image and --object"
        raise InputError(f"give {missing}, or --csv")
    folder = output.parent if is_file else output
    if is_file:
        if len(pairs) * options.num_images > 1:
            raise InputError(
                f"--output {output} is one file for {len(pairs) * options.num_images} results; give a folder"
            )
        pairs = [Pair(pairs[0].image, pairs[0].object, Path(output.name), pairs[0].seed)]
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder}: is a file; give a folder")
    inputs = {p.resolve() for pair in pairs for p in (pair.image, pair.object)}
    for pair in pairs:
        for result in pair.results(options.num_images):
            if (folder / result).resolve() in inputs:
                raise InputError(f"--output: {folder / result} would overwrite an input; give another folder")
    return Work(pairs, folder, output if is_file else None)


def _load(work: Work, pairs: list[Pair]) -> "list[tuple[Pair, Image.Image, Image.Image]]":
    """Read the pictures of some pairs; those that cannot be read are noted as failed."""
    from lit_insert.images import load_image

    loaded = []
    for pair in pairs:
        try:
            loaded.append((pair, load_image(pair.image), load_image(pair.object, mode="RGBA")))
        except InputError as error:
            work.fail(pair, error)
    return loaded


def _insert_all(options: argparse.Namespace, work: Work, first: "list[tuple[Pair, Image.Image, Image.Image]]") -> None:
    from rich.console import Console

    size, batch, start = options.batch_size, first, 0
    while not batch and start + size < len(work.pairs):  # no model is loaded for pictures that cannot be read
        start += size
        batch = _load(work, work.pairs[start : start + size])
    if not batch:
        return
    console = Console(stderr=True)
    with console.status("loading the model"):
        pipeline = _pipeline(options)
    with progress_bar(console) as progress:
        task = progress.add_task("inserting", total=len(work.pairs), completed=start)
        while start < len(work.pairs):
            if batch:
                _insert_batch(options, work, pipeline, batch, progress, task)
            start += size
            progress.update(task, completed=min(start, len(work.pairs)))
            batch = _load(work, work.pairs[start : start + size])


def _pipeline(options: argparse.Namespace) -> "InsertPipeline":
    import torch

    from lit_insert.embedding_optimizer.pipeline import InsertPipeline

    quiet_libraries()
    device = device_name(options.device)
    dtype = options.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "float16"
    pipeline = InsertPipeline.from_pretrained(options.model, dtype=getattr(torch, dtype))
    if options.scheduler:
        pipeline.set_scheduler(options.scheduler)
    move(pipeline, device)
    pipeline.set_progress_bar_config(disable=True)
    for name, own in pipeline.sampling.items():  # so that results.json says what was used
        if getattr(options, name) is None:
            setattr(options, name, own)
    return pipeline


def _insert_batch(
    options: argparse.Namespace,
    work: Work,
    pipeline: "InsertPipeline",
    batch: "list[tuple[Pair, Image.Image, Image.Image]]",
    progress: "Progress",
    task: "TaskID",
) -> None:
    """Sample a batch and write its results; a pair that fails does not take the others with it."""
    import torch

    def advance(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        rows = len(tensors["latents"]) / options.num_images
        progress.advance(task, rows / pipe.num_timesteps)
        return tensors

    pairs, scenes, objects = zip(*batch, strict=True)
    began = time.perf_counter()
    try:
        output = pipeline(
            list(scenes),
            list(objects),
            generator=[torch.Generator().manual_seed(pair.seed) for pair in pairs],
            num_images_per_prompt=options.num_images,
            num_inference_steps=options.num_inference_steps,
            guidance_scale=options.guidance_scale,
            image_guidance_scale=options.image_guidance_scale,
            height=options.height,
            width=options.width,
            processing_resolution=options.processing_resolution,
            preserve_background=not options.no_preserve_background,
            callback_on_step_end=advance,
        )
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"out of memory with {len(pairs)} pairs at once; lower --batch_size, --num_images or the size"
        ) from error
    except InputError as error:
        if len(batch) == 1:
            work.fail(pairs[0], error)
            return
        for item in batch:
            _insert_batch(options, work, pipeline, [item], progress, task)
        return
    seconds = (time.perf_counter() - began) / len(pairs)
    count = options.num_images
    for index, (pair, scene, thing) in enumerate(batch):
        own = slice(index * count, (index + 1) * count)
        _write_results(work, pair, output.images[own], output.metadata[own], seconds)
        if len(work.rows) < _GRID_ROWS:
            work.rows.append([thumbnail(p) for p in (scene, thing, *output.images[own])])


def _write_results(
    work: Work, pair: Pair, images: "list[Image.Image]", metadata: list[dict[str, Any]], seconds: float
) -> None:
    for number, (name, image, about) in enumerate(zip(pair.results(len(images)), images, metadata, strict=True)):
        write_picture(image, work.folder / name)
        about = {key: value for key, value in about.items() if key != "pair"}
        entry = {"image": str(pair.image), "object": str(pair.object), "output": str(name)}
        work.done.append({**entry, "seed": pair.seed, "number": number, **about, "seconds": round(seconds, 3)})


def _write_record(options: argparse.Namespace, work: Work) -> None:
    """Write the JSON beside the results, and the grid and report for several."""
    from lit_insert import __version__
    from lit_insert.images import image_grid, save_image

    left_out = ("image", "object", "csv", "output", "report", "pairs")
    settings = {k: v for k, v in vars(options).items() if k not in left_out and v is not None}
    record = {"lit_insert": __version__, "settings": settings, "results": work.done, "failed": work.failed}
    target = work.single.with_suffix(".json") if work.single else work.folder / "results.json"
    write_json(record, target)
    captions = ["scene", "object", *(["result"] if options.num_images == 1 else map(str, range(options.num_images)))]
    if work.single is None and work.rows:
        cell = min(256, max(max(p.size) for row in work.rows for p in row))
        save_image(image_grid(work.rows, captions=captions, cell=max(cell, 96)), work.folder / "grid.png")
    if options.report:
        _write_report(options, work, captions)


def _write_report(options: argparse.Namespace, work: Work, captions: list[str]) -> None:
    from lit_insert.report import Report

    made = len(work.pairs) - len(work.failed)
    report = Report("Insertions", f"{made} of {len(work.pairs)} pairs, model {options.model}, seed {options.seed}")
    shown = min(made, len(work.rows))
    report.heading("Results" if shown == made else f"The first {shown} results")
    report.images(work.rows, header=captions, cell_px=224)
    if work.failed:
        report.heading("Failed").table(
            ["scene", "object", "reason"], [[f["image"], f["object"], f["reason"]] for f in work.failed]
        )
    names = ("num_inference_steps", "guidance_scale", "image_guidance_scale", "scheduler", "num_images")
    report.heading("Settings").table(
        ["setting", "value"], [[name, str(getattr(options, name) or "the model's own")] for name in names]
    )
    report.save(options.report)
