"""Which person of which photo gives way to whom, and what the result is called."""

import argparse
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_insert.cli.common import free_name, picture_files
from lit_insert.cli.insert_pairs import pairs_from_paths
from lit_insert.errors import InputError
from lit_insert.images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Job:
    """One replacement.

    Attributes:
        image: File of the photo.
        other: File of the cut-out or reference, if there is one.
        mask: File of the photo's mask, if given.
        other_mask: File of the other's mask, if given.
        output: Path below the output folder.
    """

    image: Path
    other: Path | None
    mask: Path | None
    other_mask: Path | None
    output: Path


@dataclass
class Work:
    """What there is to do, and what became of it."""

    jobs: list[Job]
    folder: Path
    single: bool
    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)


def plan(options: argparse.Namespace) -> Work:
    """Settle what is to be made and where; touches no picture.

    Raises:
        InputError: If options are missing or contradict, a file is missing, or a result would overwrite an input.
    """
    if not options.image:
        raise InputError("give --image, a photo or a folder of photos")
    if options.cut_out and options.reference:
        raise InputError("give --with or --reference, not both")
    if not options.cut_out and not options.reference and options.prompt is None and options.class_label is None:
        raise InputError("say what to put in: --with, --prompt, --reference or --class_label")
    output = Path(options.output)
    single = output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir()
    suffix = output.suffix if single else f".{options.format}"
    other = options.cut_out or options.reference
    other_mask = options.with_mask if options.cut_out else options.reference_mask
    jobs = []
    if other:
        flag = "--with" if options.cut_out else "--reference"
        for pair in pairs_from_paths(options.image, other, options.pairs, suffix, options.seed, flag):
            masks = _partner(options.mask, pair.image, "--mask"), _partner(other_mask, pair.object, f"{flag}_mask")
            jobs.append(Job(pair.image, pair.object, *masks, pair.output))
    else:
        taken: set[Path] = set()
        for photo in picture_files(options.image, "--image"):
            jobs.append(
                Job(
                    photo,
                    None,
                    _partner(options.mask, photo, "--mask"),
                    None,
                    free_name(Path(f"{photo.stem}{suffix}"), taken),
                )
            )
    folder = output.parent if single else output
    if single:
        if len(jobs) > 1:
            raise InputError(f"--output {output} is one file for {len(jobs)} results; give a folder")
        jobs = [dataclasses.replace(jobs[0], output=Path(output.name))]
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder}: is a file; give a folder")
    inputs = {p.resolve() for job in jobs for p in (job.image, job.other, job.mask, job.other_mask) if p}
    for job in jobs:
        if (folder / job.output).resolve() in inputs:
            raise InputError(f"--output: {folder / job.output} would overwrite an input; give another folder")
    return Work(jobs, folder, single)


def _partner(masks: str | None, photo: Path, flag: str) -> Path | None:
    """The mask of a photo: the file given, or the one of its name in the folder given."""
    if not masks:
        return None
    files = picture_files(masks, flag)
    if not Path(masks).is_dir():
        return files[0]
    for file in files:
        if file.stem == photo.stem:
            return file
    raise InputError(f"{flag} {masks}: no mask is called {photo.stem}, as {photo} is")
