"""``infer.py synthesize``: pictures of a prompt, each thing of it in its own box."""

import argparse
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_insert.artifacts.resolve import resolve_model
from lit_insert.cli.common import (
    device_name,
    move,
    progress_bar,
    quiet_libraries,
    thumbnail,
    write_json,
    write_picture,
)
from lit_insert.cli.synthesize_jobs import Job, read_jobs
from lit_insert.cli.synthesize_options import add_arguments
from lit_insert.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from lit_insert.mifo.pipeline import SynthesisOutput, SynthesisPipeline

__all__ = ["add_arguments", "run"]
_ROWS, _COLUMNS = 32, 8  # of grid.png and of the report
_SIDE = 512  # of a preview


@dataclass
class _Made:
    """What has been written so far."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    rows: "list[list[Image.Image | str]]" = field(default_factory=list)


def run(options: argparse.Namespace) -> int:
    """Draw the pictures; returns 0.

    Raises:
        InputError: If an option, a file, a box or the model is wrong.
    """
    jobs = read_jobs(options)
    if options.boxes_only:
        return _preview(options, jobs)
    folder, first = _place(options)
    options.num_images = options.num_images or (options.batch_size if options.model_id else 1)
    resolve_model(options.model, default_pocket="text")
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("loading the model"):
        pipeline = _pipeline(options)
        for job in jobs:  # all mistakes before the first picture
            _check(pipeline, job, several=len(jobs) > 1)
    made = _Made()
    try:
        with progress_bar(console) as progress:
            task = progress.add_task("drawing", total=len(jobs) * options.num_images)

            def advance(pictures: float) -> None:
                progress.advance(task, pictures)

            for job in jobs:
                _draw(options, pipeline, job, folder, first, made, advance)
    finally:
        if made.entries:
            _write_record(options, folder, made)
    print(f"{len(made.entries)} pictures in {folder}")
    return 0


def _preview(options: argparse.Namespace, jobs: list[Job]) -> int:
    """Draw the boxes of the first prompt that has any."""
    from lit_insert.mifo.boxes import draw_layout

    boxes = next((job.boxes for job in jobs if job.boxes), None)
    if boxes is None:
        raise InputError("--boxes_only: there are no boxes; give --boxes or --box")
    size = (options.width or options.height or _SIDE, options.height or options.width or _SIDE)
    write_picture(draw_layout(boxes, size), Path(options.boxes_only))
    print(f"layout in {options.boxes_only}")
    return 0


def _place(options: argparse.Namespace) -> tuple[Path, int]:
    """Output folder, and the number of its first picture."""
    folder, first = Path(options.output), 0
    if options.model_id:
        known = Path("Model_Ours") / options.model_id
        options.model = str(known) if known.is_dir() else options.model_id
        folder = folder / f"sample_{re.sub(r'[^A-Za-z0-9_.-]', '_', options.model_id)}"
        taken = [int(p.stem) for p in folder.glob("*") if p.stem.isdecimal()]
        first = max(taken, default=-1) + 1
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder}: is a file; give a folder")
    return folder, first


def _pipeline(options: argparse.Namespace) -> "SynthesisPipeline":
    import torch

    quiet_libraries()
    from lit_insert.mifo.pipeline import SynthesisPipeline

    device = device_name(options.device)
    dtype = options.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"  # float16 overflows in the guidance
    pipeline = SynthesisPipeline.from_pretrained(options.model, dtype=getattr(torch, dtype), base=options.base)
    move(pipeline, device)
    for name in ("num_inference_steps", "guidance_scale"):  # so that results.json says what was used
        if getattr(options, name) is None and not options.cfg_plus_plus:
            setattr(options, name, getattr(pipeline.settings, name))
    return pipeline


def _check(pipeline: "SynthesisPipeline", job: Job, *, several: bool) -> None:
    from lit_insert.mifo.prompts import find_tokens

    try:
        if job.boxes is None:
            find_tokens(job.prompt, [], pipeline.parts.tokenizer)
        else:
            pipeline.locate(job.prompt, job.boxes, job.positions)
    except InputError as error:
        raise InputError(f"{job.prompt!r}: {error}" if several else str(error)) from error


def _draw(
    options: argparse.Namespace,
    pipeline: "SynthesisPipeline",
    job: Job,
    folder: Path,
    first: int,
    made: _Made,
    advance: Any,
) -> None:
    """Draw one prompt's pictures and write them."""
    import torch

    steps = options.num_inference_steps or pipeline.settings.num_inference_steps
    guidance = {"objective": options.objective, "step_size": options.step_size}
    names = ("num_images", "seed", "cfg_plus_plus", "end_tokens", "separate_words", "height", "width", "batch_size")
    began = time.perf_counter()
    try:
        output = pipeline(
            job.prompt,
            job.boxes,
            negative_prompt=options.negative_prompt or "",
            num_inference_steps=steps,
            guidance_scale=options.guidance_scale,
            masks=not options.no_masks,
            guidance=False if options.no_guidance else guidance,
            refinement=not options.no_refinement,
            subject_token_indices=job.positions,
            on_step=lambda count: advance(count / steps),
            **{name: getattr(options, name) for name in names},
        )
    except torch.OutOfMemoryError as error:
        raise InputError(f"out of memory with {options.batch_size} pictures at once; lower --batch_size") from error
    seconds = round((time.perf_counter() - began) / len(output.images), 3)
    _write(options, job, output, folder, first, made, seconds)


def _write(
    options: argparse.Namespace,
    job: Job,
    output: "SynthesisOutput",
    folder: Path,
    first: int,
    made: _Made,
    seconds: float,
) -> None:
    from lit_insert.mifo.boxes import draw_layout

    boxes = [{"subject": box.subject, "box": list(box.corners)} for box in output.boxes]
    for index, picture in enumerate(output.images):
        number = first + index
        stem = f"{job.stem}_{number:05d}" if job.stem else str(number) if options.model_id else f"{number:05d}"
        name = f"{stem}.{options.format}"
        write_picture(picture, folder / name)
        entry = {"output": name, "prompt": job.prompt, "seed": output.seeds[index], "boxes": boxes, "seconds": seconds}
        losses = output.losses[index]
        if losses is not None:
            entry["guidance_loss"] = [round(loss, 6) for loss in losses]
        made.entries.append(entry)
    if len(made.rows) < _ROWS:
        cells: list[Any] = [thumbnail(picture) for picture in output.images[:_COLUMNS]]
        if output.boxes:
            size = cells[0].size
            scale = max(1, 256 // max(size))
            cells.insert(0, draw_layout(output.boxes, (size[0] * scale, size[1] * scale), output.images[0]))
        made.rows.append([job.prompt, *cells])


def _write_record(options: argparse.Namespace, folder: Path, made: _Made) -> None:
    """Write grid, JSON, and the report if asked for."""
    from lit_insert import __version__
    from lit_insert.images import image_grid

    pictures = [[cell for cell in row if not isinstance(cell, str)] for row in made.rows]
    cell = max(96, min(256, max(max(p.size) for row in pictures for p in row)))
    write_picture(image_grid(pictures, cell=cell), folder / "grid.png")
    left_out = ("output", "report", "boxes_only", "prompt", "prompts", "boxes", "box")
    settings = {k: v for k, v in vars(options).items() if k not in left_out and v is not None}
    record = {"lit_insert": __version__, "settings": settings, "results": made.entries}
    write_json(record, folder / "results.json")
    if options.report:
        from lit_insert.report import Report

        page = Report("Synthesis", f"{len(made.entries)} pictures, model {options.model}, seed {options.seed}")
        page.heading("Pictures" if len(made.rows) < _ROWS else f"The first {_ROWS} prompts")
        page.text("Where there are boxes, the first picture of a row shows them over the first result.")
        page.images(made.rows, cell_px=192)
        page.heading("Settings").table(["setting", "value"], [[k, str(v)] for k, v in settings.items()])
        page.save(options.report)
