"""Looking a data set over: what is in it, what is broken, what leaks between its splits."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from lit_insert.data.decode import decode_picture, read_picture
from lit_insert.data.folder import SPLITS, Record, metadata_file, read_metadata
from lit_insert.data.loading import BrokenSample
from lit_insert.data.parquet_join import join, parquet_files, row_key
from lit_insert.data.pipe_rows import INSTRUCTIONS, MASK_COLUMNS, SOURCE_COLUMNS, open_rows
from lit_insert.errors import InputError
from lit_insert.images import list_images
from lit_insert.report import Report

_SAMPLES = 4


@dataclass
class SplitCheck:
    """One split.

    Attributes:
        name: "train", "val", "test", or a folder of pictures.
        count: Samples that metadata or files promise.
        good: Samples of which everything can be read and fits together.
        faults: What is wrong, by file or id.
        pictures: Names of the pictures that the samples come from.
        samples: Rows of (caption, pictures …) of a few good samples.
    """

    name: str
    count: int = 0
    good: int = 0
    faults: dict[str, str] = field(default_factory=dict)
    pictures: set[str] = field(default_factory=set)
    samples: list[list[Any]] = field(default_factory=list)


@dataclass
class Check:
    """A whole data set.

    Attributes:
        kind: "triplets", "PIPE parquet" or "pictures".
        header: Titles of the columns of ``SplitCheck.samples``.
        splits: What is in each split.
        problems: What is wrong with the set as a whole.
    """

    kind: str
    header: list[str]
    splits: list[SplitCheck] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.problems and not any(s.faults for s in self.splits)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "kind": self.kind,
            "ok": self.ok,
            "splits": {
                s.name: {"count": s.count, "good": s.good, "pictures": len(s.pictures), "faults": s.faults}
                for s in self.splits
            },
            "problems": self.problems,
        }


def check_data(
    path: Path, masks: Path | None = None, workers: int = 2, tick: Callable[[], None] = lambda: None
) -> Check:
    """Open everything in a data set once.

    Args:
        path: A folder of triplets, of PIPE parquet files, or of pictures.
        masks: The folder of PIPE_Masks that belongs to PIPE parquet files.
        workers: Threads that decode.
        tick: Called after each sample.

    Raises:
        InputError: If there is nothing that could be a data set.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    if any(metadata_file(path / split) for split in SPLITS):
        check = _check_triplets(path, workers, tick)
    elif next(path.rglob("*.parquet"), None):
        if masks is None:
            raise InputError(f"{path}: holds parquet files; give --masks, the folder of PIPE_Masks")
        check = _check_pipe(path, masks, tick)
    else:
        check = _check_pictures(path, workers, tick)
    check.problems += _leaks(check.splits)
    return check


def _leaks(splits: list[SplitCheck]) -> list[str]:
    problems = []
    for number, one in enumerate(splits):
        for other in splits[number + 1 :]:
            if both := sorted(one.pictures & other.pictures):
                problems.append(f"{len(both)} pictures are in {one.name} and in {other.name}, the first is {both[0]}")
    return problems


def _due(split: SplitCheck, number: int) -> bool:
    """Whether to show this good sample: four, evenly spread."""
    taken = len(split.samples)
    return taken < _SAMPLES and number >= taken * split.count // _SAMPLES


def _all(items: Iterable[Any], look: Callable[[Any], Any], workers: int) -> Iterator[Any]:
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(look, items)


def look_at(record: Record) -> tuple[list[Image.Image], dict[str, str]]:
    """Open the pictures of a triplet (original, target, object, mask) and compare their sizes with the metadata.

    Returns:
        The pictures, or an empty list if something is wrong; and what is wrong, by file or id.
    """
    pictures: list[Image.Image] = []
    faults: dict[str, str] = {}
    for file, mode in (
        (record.original, "RGB"),
        (record.target, "RGB"),
        (record.object, "RGB"),
        *([(record.mask, "L")] if record.mask else []),
    ):
        try:
            pictures.append(read_picture(file, mode))  # type: ignore[arg-type]
        except BrokenSample as error:
            faults[error.name] = error.reason
    if faults:
        return [], faults
    original, target = pictures[:2]
    if original.size != target.size:
        faults[record.id] = f"original is {original.size}, target is {target.size}"
    if record.mask:
        if pictures[3].size != target.size:
            faults[record.id] = f"mask is {pictures[3].size}, target is {target.size}"
        elif pictures[3].getextrema()[1] < 128:  # type: ignore[operator]
            faults[record.id] = "the mask is empty"
    if record.box:
        x0, y0, x1, y1 = record.box
        if not (0 <= x0 < x1 <= target.width and 0 <= y0 < y1 <= target.height):
            faults[record.id] = f"the box {record.box} is not within the target of {target.size}"
    return ([] if faults else pictures), faults


def _check_triplets(path: Path, workers: int, tick: Callable[[], None]) -> Check:
    check = Check("triplets", ["id", "original", "object", "target", "mask"])
    seen: dict[str, str] = {}
    for name in SPLITS:
        if metadata_file(path / name) is None:
            continue
        split = SplitCheck(name)
        check.splits.append(split)
        try:
            records = read_metadata(path / name)
        except InputError as error:
            check.problems.append(str(error))
            continue
        split.count = len(records)
        for number, (record, (pictures, faults)) in enumerate(
            zip(records, _all(records, look_at, workers), strict=True)
        ):
            tick()
            split.faults |= faults
            split.pictures.add(record.image_id)
            split.good += bool(pictures)
            if pictures and _due(split, number):
                original, target, thing = pictures[:3]
                cover = pictures[3] if len(pictures) > 3 else None
                split.samples.append([f"{record.id}\n{record.instruction}", original, thing, target, cover])
            if (other := seen.setdefault(record.id, name)) != name:
                check.problems.append(f"triplet_id {record.id!r} is in {other} and in {name}")
    return check


def _check_pipe(path: Path, masks: Path, tick: Callable[[], None]) -> Check:
    check = Check("PIPE parquet", ["id", "source_img", "target_img", "mask"])
    for name in SPLITS:
        if not parquet_files(path, name, missing_ok=True):
            continue
        split = SplitCheck(name)
        check.splits.append(split)
        try:
            rows = open_rows(str(path), name, SOURCE_COLUMNS, INSTRUCTIONS, streaming=True)
            covers = open_rows(str(masks), name, MASK_COLUMNS, streaming=True)
            numbers, partners, _ = join(rows, covers)
        except InputError as error:
            check.problems.append(f"{name}: {error}")
            continue
        split.count = len(rows)
        if len(numbers) < len(rows):
            check.problems.append(f"{name}: {len(rows) - len(numbers)} of {len(rows)} rows have no mask")
        for number, partner in zip(numbers.tolist(), partners.tolist(), strict=True):
            tick()
            row, cover = rows.row(number), covers.row(partner)
            key = "-".join(row_key(row))
            split.pictures.add("/".join(row_key(row)[:2]))
            try:
                pictures = [
                    decode_picture(row["source_img"], f"{rows.name(number)} source_img"),
                    decode_picture(row["target_img"], f"{rows.name(number)} target_img"),
                    decode_picture(cover["mask"], f"{covers.name(partner)} mask", "L"),
                ]
            except BrokenSample as error:
                split.faults[error.name] = error.reason
                continue
            split.good += 1
            if _due(split, number):
                split.samples.append([key, *pictures])
    return check


def _check_pictures(path: Path, workers: int, tick: Callable[[], None]) -> Check:
    check = Check("pictures", ["file", "picture"])
    folders = [path, *sorted(p for p in path.rglob("*") if p.is_dir() and not p.name.startswith("."))]

    def look(file: Path) -> Image.Image | BrokenSample:
        try:
            return read_picture(file)
        except BrokenSample as error:
            return error

    for folder in folders:
        try:
            files = list_images(folder)
        except InputError:
            continue  # a folder that only holds folders
        split = SplitCheck(str(folder.relative_to(path)), len(files))
        check.splits.append(split)
        for file, picture in zip(files, _all(files, look, workers), strict=True):
            tick()
            if isinstance(picture, BrokenSample):
                split.faults[picture.name] = picture.reason
                continue
            split.good += 1
            if len(split.samples) < _SAMPLES:
                split.samples.append([file.name, picture])
    if not check.splits:
        raise InputError(f"{path}: no metadata, no parquet files and no pictures in it")
    return check


def report_of(check: Check, path: Path, similarity: dict[str, dict[str, float]] | None = None) -> Report:
    """The page of a check: counts, faults, four samples of each split, similarities if there are some."""
    report = Report(f"Data check: {path.name}", f"{check.kind}; {'nothing wrong' if check.ok else 'has faults'}")
    report.table(
        ["split", "samples", "good", "pictures", "faults"],
        [[s.name, s.count, s.good, len(s.pictures) or None, len(s.faults)] for s in check.splits],
    )
    if not check.ok:
        report.heading("Faults")
        report.table(
            ["where", "what"],
            [["the whole", p] for p in check.problems]
            + [[where, what] for s in check.splits for where, what in s.faults.items()],
        )
    if similarity:
        report.heading("CLIP similarity (cosine)")
        report.table(["pair", *next(iter(similarity.values()))], [[k, *v.values()] for k, v in similarity.items()])
    for split in check.splits:
        if split.samples:
            report.heading(f"{split.name}: {len(split.samples)} of {split.count}")
            report.images(split.samples, header=check.header, cell_px=160)
    return report
