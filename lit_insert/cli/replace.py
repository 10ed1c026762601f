"""``infer.py replace``: the person of a photo by another, for one photo or a folder."""

import argparse
import dataclasses
import sys
import time
from typing import TYPE_CHECKING, Any

from lit_insert.cli.common import progress_bar, write_json, write_picture
from lit_insert.cli.replace_jobs import Job, Work, plan
from lit_insert.cli.replace_parts import add_fill_arguments, load_pipeline, needs_segmenter, settle_fill
from lit_insert.errors import InputError

if TYPE_CHECKING:
    from lit_insert.replace.page import ReplacePage
    from lit_insert.replace.pipeline import ReplacePipeline
    from lit_insert.replace.settings import ReplaceSettings

_FORMATS = ("png", "jpg", "webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from lit_insert.replace.settings import ReplaceSettings

    own = ReplaceSettings()
    parser.usage = (
        "infer.py replace --image PATH (--with PATH | --prompt TEXT | --reference PATH | --class_label N) [options]"
    )
    what = parser.add_argument_group("what")
    what.add_argument("--image", metavar="PATH", help="photo, or a folder of photos")
    what.add_argument(
        "--with",
        dest="cut_out",
        metavar="PATH",
        help="the new person, pasted: a cut-out with alpha, or a photo to cut the person out of; or a folder",
    )
    what.add_argument("--reference", metavar="PATH", help="the new person as a model begins with it, or a folder")
    what.add_argument("--prompt", metavar="TEXT", help="the new person in words; with --with, what is behind")
    what.add_argument("--class_label", metavar="N", type=int, help="the class of the new person")
    what.add_argument(
        "--pairs", choices=("name", "all"), default="name", help="two folders: pair files of one name, or all with all"
    )
    who = parser.add_argument_group("who is replaced")
    who.add_argument("--mask", metavar="PATH", help="white where the person is, or a folder of masks of the same names")
    who.add_argument("--with_mask", metavar="PATH", help="the same for --with")
    who.add_argument("--reference_mask", metavar="PATH", help="the same for --reference")
    who.add_argument(
        "--mask_model",
        metavar="MODEL",
        help="finds people where no mask is given, and judges the result: pocket (the default), a run, a folder, a "
        ".ckpt or a hub id",
    )
    who.add_argument(
        "--components",
        metavar="WHICH",
        type=_components,
        default="largest",
        help="largest, all, or a number, 0 largest",
    )
    for name, text in (
        ("presence_threshold", "leave photos alone in which the mask model is less sure of a person"),
        ("mask_threshold", "a pixel is the person's above this probability"),
        ("min_area", "ignore parts of the mask smaller than this fraction of the photo"),
    ):
        who.add_argument(f"--{name}", metavar="P", type=float, default=getattr(own, name), help=text)
    add_fill_arguments(parser)
    how = parser.add_argument_group("how")
    how.add_argument(
        "--region_scale",
        metavar="S",
        type=_region_scale,
        default=own.region_scale,
        help="side of the square that is worked on over that of the person, or photo for all of it",
    )
    how.add_argument("--fit", choices=("auto", "height", "width"), default=own.fit, help="what the new size follows")
    how.add_argument("--align", choices=("feet", "head"), default=own.align, help="which ends meet")
    how.add_argument(
        "--colour_reference", choices=("surround", "person"), default=own.colour_reference, help="whose light to take"
    )
    for name, text in (
        ("grow", "how far the hole reaches beyond the mask, of the square"),
        ("scale", "factor on the new person's size"),
        ("colour_strength", "how far to take that light, 0 to 1"),
    ):
        how.add_argument(f"--{name}", metavar="S", type=float, default=getattr(own, name), help=text)
    how.add_argument("--seamless", action="store_true", help="fit the fill's colours by Poisson blending")
    how.add_argument("--seed", metavar="N", type=int, default=0, help="of the noise; the same for every photo")
    how.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    how.add_argument(
        "--dtype",
        metavar="TYPE",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="of the fill's model: float32, float16, bfloat16; auto: float16 for diffusion on an accelerator",
    )
    out = parser.add_argument_group("output")
    out.add_argument("--output", default="out", metavar="PATH", help="folder; or, for a single result, a picture file")
    out.add_argument(
        "--format", choices=_FORMATS, default="png", help="of the results in a folder; png keeps every bit"
    )
    out.add_argument("--save_steps", action="store_true", help="also write every step, to steps/ of the folder")
    out.add_argument("--report", metavar="FILE", help="also write an HTML page with every step")


def _components(text: str) -> str | int:
    if text in ("all", "largest"):
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: give largest, all or a number")


def _region_scale(text: str) -> float | None:
    try:
        return None if text == "photo" else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number or photo") from error


def run(options: argparse.Namespace) -> int:
    """Replace; returns 0, or 1 if nobody was found in some photo (it is copied) or some failed.

    Raises:
        InputError: If no photo could be worked on at all.
    """
    from lit_insert.replace.settings import ReplaceSettings

    names = [f.name for f in dataclasses.fields(ReplaceSettings)]
    settings = ReplaceSettings(**{name: getattr(options, name) for name in names})
    work = plan(options)
    settle_fill(options)
    from lit_insert.replace.page import ReplacePage

    segmenter = needs_segmenter(options, {job.other for job in work.jobs if job.other})
    page = ReplacePage()
    try:
        _replace_all(options, settings, work, load_pipeline(options, segmenter), page)
    finally:
        if work.done:
            _write_record(options, work, page)
    return _tell(work)


def _replace_all(
    options: argparse.Namespace,
    settings: "ReplaceSettings",
    work: Work,
    pipeline: "ReplacePipeline",
    page: "ReplacePage",
) -> None:
    from rich.console import Console

    with progress_bar(Console(stderr=True)) as progress:
        for job in progress.track(work.jobs, description="replacing"):
            try:
                _replace_one(options, settings, work, pipeline, page, job)
            except InputError as error:
                if len(work.jobs) == 1:
                    raise
                other = {} if job.other is None else {"other": str(job.other)}
                work.failed.append({"image": str(job.image), **other, "reason": " ".join(str(error).split())})


def _replace_one(
    options: argparse.Namespace,
    settings: "ReplaceSettings",
    work: Work,
    pipeline: "ReplacePipeline",
    page: "ReplacePage",
    job: Job,
) -> None:
    kind = "cut_out" if options.cut_out else "reference"
    given: dict[str, Any] = {} if job.other is None else {kind: job.other, f"{kind}_mask": job.other_mask}
    began = time.perf_counter()
    output = pipeline(
        job.image,
        mask=job.mask,
        prompt=options.prompt,
        class_label=options.class_label,
        seed=options.seed,
        settings=settings,
        **given,
    )
    seconds = time.perf_counter() - began
    write_picture(output.image, work.folder / job.output)
    if options.save_steps:
        output.steps.save(work.folder / "steps" / job.output.stem)
    page.add(str(job.output), output)
    other = {} if job.other is None else {"other": str(job.other)}
    entry = {"image": str(job.image), **other, "output": str(job.output), "size": list(output.image.size)}
    work.done.append({**entry, **output.report.as_dict(), "seconds": round(seconds, 3)})


def _write_record(options: argparse.Namespace, work: Work, page: "ReplacePage") -> None:
    from lit_insert import __version__

    left_out = ("image", "cut_out", "reference", "output", "report", "pairs", "save_steps")
    settings = {k: v for k, v in vars(options).items() if k not in left_out and v is not None}
    record = {"lit_insert": __version__, "settings": settings, "results": work.done, "failed": work.failed}
    first = work.folder / work.jobs[0].output
    write_json(record, first.with_suffix(".json") if work.single else work.folder / "results.json")
    if options.report:
        made = sum(entry["replaced"] for entry in work.done)
        subtitle = f"{made} of {len(work.jobs)} photos, fill {options.fill}, seed {options.seed}"
        report = page.page(subtitle, list(settings.items()))
        if work.failed:
            rows = [[f["image"], f.get("other", ""), f["reason"]] for f in work.failed]
            report.heading("Failed").table(["photo", "other", "reason"], rows)
        report.save(options.report)


def _tell(work: Work) -> int:
    """Say how it went; returns the exit status."""
    copied = [entry for entry in work.done if not entry["replaced"]]
    for entry in copied:
        print(f"copied: {entry['image']}: {entry['reason']}", file=sys.stderr)
    for entry in work.done:
        for note in entry["notes"]:
            print(f"note: {entry['output']}: {note}", file=sys.stderr)
    for failure in work.failed:
        print(f"failed: {failure['image']}: {failure['reason']}", file=sys.stderr)
    if not work.done:
        raise InputError(f"none of {len(work.jobs)} photos could be made; the first: {work.failed[0]['reason']}")
    where = work.folder / work.jobs[0].output if work.single else work.folder
    print(f"{len(work.done) - len(copied)} of {len(work.jobs)} photos replaced, in {where}")
    return 1 if copied or work.failed else 0
