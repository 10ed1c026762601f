"""``infer.py generate``: pictures from noise, in one to a few steps."""

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_insert.artifacts.resolve import resolve_model
from lit_insert.cli.common import positive, progress_bar, write_json, write_picture
from lit_insert.cli.sampling_options import add_sampling_options, labels_in_turn, load_pipeline, sampling_arguments
from lit_insert.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from lit_insert.consistency.pipeline import ConsistencyPipeline

_SHOWN = 100  # pictures of grid.png and of the report
_FORMATS = ("png", "jpg", "webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.usage = "infer.py generate [--model MODEL] [--num_images N] [--steps N] [--output FOLDER] [options]"
    parser.add_argument("--num_images", metavar="N", type=positive, default=16, help="how many")
    add_sampling_options(parser, "1, for a diffusion teacher 18")
    out = parser.add_argument_group("output")
    out.add_argument("--output", default="out", metavar="FOLDER", help="folder of pictures, grid.png and results.json")
    out.add_argument("--format", choices=_FORMATS, default="png", help="of the pictures")
    out.add_argument(
        "--npz", action="store_true", help="also write samples.npz: arr_0 uint8 (N,H,W,3), and the classes as arr_1"
    )
    out.add_argument("--report", metavar="FILE", help="also write an HTML page of the pictures")


@dataclass
class _Made:
    """What has been written so far."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    shown: "list[Image.Image]" = field(default_factory=list)
    pixels: "list[np.ndarray]" = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


def run(options: argparse.Namespace) -> int:
    """Make the pictures; returns 0.

    Raises:
        InputError: If the model is not there or an option is out of range.
    """
    folder = Path(options.output)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder}: is a file; give a folder")
    resolve_model(options.model, default_pocket="generate")
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("loading the model"):
        pipeline = load_pipeline(options)
    made = _Made()
    try:
        with progress_bar(console) as progress:
            task = progress.add_task("generating", total=options.num_images)
            for start in range(0, options.num_images, options.batch_size):
                _generate(options, pipeline, folder, made, start)
                progress.update(task, completed=len(made.entries))
    finally:
        if made.entries:
            _write_record(options, pipeline, folder, made)
    print(f"{len(made.entries)} pictures in {folder}")
    return 0


def _generate(
    options: argparse.Namespace, pipeline: "ConsistencyPipeline", folder: Path, made: _Made, start: int
) -> None:
    """Make and write one batch, starting with picture number ``start``."""
    import numpy as np
    import torch

    count = min(options.batch_size, options.num_images - start)
    labels = labels_in_turn(options, start, count)
    began = time.perf_counter()
    try:
        output = pipeline(
            count, seed=options.seed + start, class_labels=labels, batch_size=count, **sampling_arguments(options)
        )
    except torch.OutOfMemoryError as error:
        raise InputError(f"out of memory with {count} pictures at once; lower --batch_size") from error
    seconds = round((time.perf_counter() - began) / count, 5)
    for index, picture in enumerate(output.images):
        number = start + index
        name = f"{number:05d}.{options.format}"
        write_picture(picture, folder / name)
        entry: dict[str, Any] = {"output": name, "seed": options.seed + number}
        if output.labels is not None:
            entry["class_label"] = output.labels[index]
            made.labels.append(output.labels[index])
        made.entries.append({**entry, "seconds": seconds})
        if len(made.shown) < _SHOWN:
            made.shown.append(picture)
        if options.npz:
            made.pixels.append(np.asarray(picture))


def _write_record(options: argparse.Namespace, pipeline: "ConsistencyPipeline", folder: Path, made: _Made) -> None:
    """Write grid, JSON, and what else was asked for."""
    from lit_insert import __version__
    from lit_insert.images import image_grid

    columns = max(1, round(len(made.shown) ** 0.5))
    rows = [made.shown[i : i + columns] for i in range(0, len(made.shown), columns)]
    write_picture(image_grid(rows, cell=max(made.shown[0].width, 64)), folder / "grid.png")
    levels = pipeline.levels(options.num_inference_steps, options.sigmas, options.ts)
    settings = {k: v for k, v in vars(options).items() if k not in ("output", "report") and v is not None}
    settings["sigmas"] = [round(s, 6) for s in levels]
    write_json({"lit_insert": __version__, "settings": settings, "results": made.entries}, folder / "results.json")
    if options.npz:
        _write_npz(folder / "samples.npz", made)
    if options.report:
        from lit_insert.report import Report

        page = Report("Generated pictures", f"model {options.model}, seed {options.seed}")
        page.images(rows, cell_px=96)
        page.table(["setting", "value"], [[k, str(v)] for k, v in settings.items()]).save(options.report)


def _write_npz(path: Path, made: _Made) -> None:
    import numpy as np

    from lit_insert.artifacts.atomic import atomic_file

    arrays = {"arr_0": np.stack(made.pixels)}
    if made.labels:
        arrays["arr_1"] = np.array(made.labels, dtype=np.int64)
    with atomic_file(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
