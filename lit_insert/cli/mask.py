"""``infer.py mask``: masks, cut-outs and overlays of photos; or the model as a file for other runtimes."""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_insert.artifacts.resolve import resolve_model
from lit_insert.cli.common import (
    add_model_options,
    device_name,
    free_name,
    move,
    picture_files,
    progress_bar,
    quiet_libraries,
    thumbnail,
    write_json,
    write_picture,
)
from lit_insert.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from lit_insert.mask_decoder.pipeline import MaskPipeline

_ROWS = 32  # of the report
_TINT = (255, 48, 96)
_FORMS = (".onnx", ".pt2")
_RESULTS = ("mask", "overlay", "cutout")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.usage = "infer.py mask --image PATH [--model MODEL] [--output PATH] [options]"
    parser.add_argument("--image", metavar="PATH", help="photo, or a folder of photos")
    add_model_options(parser, batch_size=8, batch_help="photos that go through the network at once", auto="float32")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--threshold", metavar="P", type=float, default=0.5, help="inside is where the probability is above this"
    )
    how.add_argument("--flip", action="store_true", help="also look at the mirrored photo: steadier, twice the time")
    how.add_argument(
        "--components", choices=("all", "largest"), default="all", help="connected parts of the mask to keep"
    )
    how.add_argument(
        "--min_area",
        metavar="A",
        type=float,
        default=0.0,
        help="drop parts smaller than this: below 1 a fraction of the photo, from 1 on pixels",
    )
    how.add_argument(
        "--min_presence", metavar="P", type=float, default=0.0, help="empty mask where the presence score is below this"
    )
    out = parser.add_argument_group("output")
    out.add_argument(
        "--output",
        default="out",
        metavar="PATH",
        help="folder, for mask, overlay, cut-out and results.json; or, for one photo, a file for the mask",
    )
    out.add_argument("--report", metavar="FILE", help="also write an HTML page of the results")
    out.add_argument(
        "--export", metavar="FILE", help="instead: write the model as FILE.onnx or FILE.pt2 (torch.export) and check it"
    )


@dataclass
class Work:
    """Photos to do, by the name of their results, and what became of them."""

    photos: dict[Path, str]
    folder: Path
    single: Path | None
    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    rows: "list[list[Image.Image | str]]" = field(default_factory=list)

    def fail(self, photo: Path, reason: object) -> None:
        """Note a photo that could not be done."""
        self.failed.append({"image": str(photo), "reason": " ".join(str(reason).split())})


def run(options: argparse.Namespace) -> int:
    """Mask the photos; returns 0, or 1 if some failed.

    Raises:
        InputError: If nothing could be done at all.
    """
    if options.export:
        return _export(options)
    work = _plan(options)
    resolve_model(options.model, default_pocket="mask")
    batches = _batches(work, options.batch_size)
    first = next(batches, None)  # before torch: mistakes should answer at once
    try:
        if first is not None:
            _mask_all(options, work, first, batches)
    finally:
        if work.done:
            _write_record(options, work)
    if len(work.photos) == 1 and work.failed:
        raise InputError(work.failed[0]["reason"])
    for failure in work.failed:
        print(f"failed: {failure['image']}: {failure['reason']}", file=sys.stderr)
    if not work.done:
        raise InputError(f"none of {len(work.photos)} photos could be masked; the first: {work.failed[0]['reason']}")
    print(f"{len(work.done)} masks in {work.single or work.folder}")
    if work.failed:
        print(f"error: {len(work.failed)} of {len(work.photos)} photos failed", file=sys.stderr)
        return 1
    return 0


def _export(options: argparse.Namespace) -> int:
    if options.image:
        raise InputError("--export writes the model and masks nothing; leave out --image")
    if Path(options.export).suffix not in _FORMS:
        raise InputError(f"--export {options.export}: give a name that ends in {' or '.join(_FORMS)}")
    resolve_model(options.model, default_pocket="mask")
    quiet_libraries()
    from lit_insert.mask_decoder.export import export_network
    from lit_insert.mask_decoder.pipeline import MaskPipeline

    pipeline = MaskPipeline.from_pretrained(options.model)
    difference = export_network(pipeline.network, options.export)
    print(f"{options.export}: logits differ from the model's by at most {difference:.1e}")
    return 0


def _plan(options: argparse.Namespace) -> Work:
    """Settle what is to be done and where results go; touches no photo."""
    from lit_insert.images import IMAGE_SUFFIXES

    if not options.image:
        raise InputError("give --image, a photo or a folder of photos")
    files = picture_files(options.image, "--image")
    output = Path(options.output)
    is_file = output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir()
    if is_file and len(files) > 1:
        raise InputError(f"--output {output} is one file for {len(files)} photos; give a folder")
    if is_file and output.suffix.lower() in (".jpg", ".jpeg"):
        raise InputError(f"--output {output}: JPEG blurs masks; give a .png")
    folder = output.parent if is_file else output
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder}: is a file; give a folder")
    taken: set[Path] = set()
    work = Work({p: str(free_name(Path(p.stem), taken)) for p in files}, folder, output if is_file else None)
    inputs = {p.resolve() for p in files}
    for name in work.photos.values():
        targets = [output] if is_file else [folder / f"{name}_{kind}.png" for kind in _RESULTS]
        for target in targets:
            if target.resolve() in inputs:
                raise InputError(f"--output: {target} would overwrite an input; give another folder")
    return work


def _batches(work: Work, size: int) -> "Iterator[list[tuple[Path, Image.Image]]]":
    """Lists of (file, photo) as long as the batch; photos that cannot be read are noted as failed."""
    from lit_insert.images import load_image

    batch: list[tuple[Path, Image.Image]] = []
    for path in work.photos:
        try:
            batch.append((path, load_image(path)))
        except InputError as error:
            work.fail(path, error)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _mask_all(options: argparse.Namespace, work: Work, first: Any, rest: Iterator[Any]) -> None:
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("loading the model"):
        pipeline = _pipeline(options)
    with progress_bar(console) as progress:
        task = progress.add_task("masking", total=len(work.photos))
        for batch in chain([first], rest):
            _mask_batch(options, work, pipeline, batch)
            progress.update(task, completed=len(work.done) + len(work.failed))


def _pipeline(options: argparse.Namespace) -> "MaskPipeline":
    import torch

    from lit_insert.mask_decoder.pipeline import MaskPipeline

    quiet_libraries()
    dtype = "float32" if options.dtype == "auto" else options.dtype
    pipeline = MaskPipeline.from_pretrained(options.model, dtype=getattr(torch, dtype))
    move(pipeline, device_name(options.device))
    return pipeline


def _mask_batch(
    options: argparse.Namespace, work: Work, pipeline: "MaskPipeline", batch: "list[tuple[Path, Image.Image]]"
) -> None:
    """Mask a batch and write its results; a photo that fails does not take the others with it."""
    import torch

    began = time.perf_counter()
    settings = {k: getattr(options, k) for k in ("threshold", "flip", "components", "min_area", "min_presence")}
    try:
        found = pipeline([photo for _, photo in batch], batch_size=len(batch), **settings)
    except torch.OutOfMemoryError as error:
        raise InputError(f"out of memory with {len(batch)} photos at once; lower --batch_size") from error
    seconds = (time.perf_counter() - began) / len(batch)
    for (path, photo), mask, presence in zip(batch, found.masks, found.presence, strict=True):
        entry = {"image": str(path), **_write_results(work, path, photo, mask)}
        work.done.append({**entry, **_describe(mask), "presence": round(presence, 6), "seconds": round(seconds, 4)})


def _write_results(work: Work, path: Path, photo: "Image.Image", mask: "Image.Image") -> dict[str, str]:
    """Write a photo's pictures; returns their names."""
    if work.single is not None:
        write_picture(mask, work.single)
        names = {"mask": work.single.name}
    else:
        names = {kind: f"{work.photos[path]}_{kind}.png" for kind in _RESULTS}
    shown = {"mask": mask, "overlay": overlay(photo, mask), "cutout": cutout(photo, mask)}
    if work.single is None:
        for kind, name in names.items():
            write_picture(shown[kind], work.folder / name)
    if len(work.rows) < _ROWS:
        work.rows.append([path.name, *(thumbnail(p) for p in (photo, shown["overlay"], shown["cutout"]))])
    return names


def overlay(photo: "Image.Image", mask: "Image.Image", strength: float = 0.45) -> "Image.Image":
    """The photo, tinted where the mask is 255, with an opaque outline."""
    import cv2
    import numpy as np
    from PIL import Image

    inside = np.asarray(mask) > 0
    weight = inside * np.float32(strength)
    width = max(1, round(max(photo.size) / 400))
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    weight[inside & (cv2.erode(inside.astype(np.uint8), kernel, borderValue=1) == 0)] = 1
    pixels = np.asarray(photo.convert("RGB")).astype(np.float32)
    pixels += weight[..., None] * (np.array(_TINT, np.float32) - pixels)
    return Image.fromarray(pixels.round().astype(np.uint8))


def cutout(photo: "Image.Image", mask: "Image.Image") -> "Image.Image":
    """The photo with the mask as its alpha, of the same size."""
    picture = photo.convert("RGB")
    picture.putalpha(mask)
    return picture


def _describe(mask: "Image.Image") -> dict[str, Any]:
    """What the record says of a mask."""
    import cv2
    import numpy as np

    from lit_insert.rle import encode_rle

    inside: np.ndarray = (np.asarray(mask) > 0).astype(np.uint8)
    pixels = int(inside.sum())
    return {
        "size": list(mask.size),
        "pixels": pixels,
        "area": round(pixels / inside.size, 6),
        "box": list(cv2.boundingRect(inside)) if pixels else None,
        "rle": encode_rle(inside),
    }


def _write_record(options: argparse.Namespace, work: Work) -> None:
    """Write the JSON beside the results, and the report."""
    from lit_insert import __version__

    left_out = ("image", "output", "report", "export")
    settings = {k: v for k, v in vars(options).items() if k not in left_out}
    record = {"lit_insert": __version__, "settings": settings, "results": work.done, "failed": work.failed}
    write_json(record, work.single.with_suffix(".json") if work.single else work.folder / "results.json")
    if not options.report:
        return
    from lit_insert.report import Report

    report = Report("Masks", f"{len(work.done)} of {len(work.photos)} photos, model {options.model}")
    shown = "Results" if len(work.rows) == len(work.done) else f"The first {len(work.rows)} results"
    report.heading(shown).images(work.rows, header=["", "photo", "mask", "cut-out"], cell_px=224)
    columns = ("image", "size", "area", "box", "presence")
    table = [[str(v) if isinstance(v := e[c], list) else v for c in columns] for e in work.done]
    report.heading("Figures").table(columns, table)
    if work.failed:
        report.heading("Failed").table(["photo", "reason"], [[f["image"], f["reason"]] for f in work.failed])
    report.heading("Settings").table(["setting", "value"], [[k, str(v)] for k, v in settings.items()])
    report.save(options.report)
