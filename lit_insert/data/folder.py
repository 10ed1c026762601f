"""Triplets in a folder: ``{train,val,test}/metadata.csv`` (or ``.jsonl``) beside the pictures it names."""

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from lit_insert.data.decode import read_picture
from lit_insert.data.loading import BrokenSample
from lit_insert.data.transforms import TripletTransform
from lit_insert.data.triplets import Triplet
from lit_insert.data.views import TripletViews
from lit_insert.errors import InputError

REQUIRED = ("triplet_id", "original_image_file_name", "target_image_file_name", "object_image_file_name")
BOX = ("x0", "y0", "x1", "y1")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Record:
    """One line of a metadata file; paths are inside the folder of that file."""

    id: str
    image_id: str
    original: Path
    target: Path
    object: Path
    mask: Path | None
    box: tuple[int, int, int, int] | None
    instruction: str


def metadata_file(folder: Path) -> Path | None:
    """The folder's ``metadata.csv`` or ``metadata.jsonl``, None if it has neither."""
    return next((f for n in ("metadata.csv", "metadata.jsonl") if (f := folder / n).is_file()), None)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file)
                for row in reader:
                    yield reader.line_num, row
            else:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield number, json.loads(line)
    except (csv.Error, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


class Inside:
    """Turns names into paths below one folder; links are followed, folders of names looked up once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder.resolve()
        self._parents: dict[str, bool] = {}

    def __call__(self, name: str, where: str) -> Path:
        """The path of a name.

        Args:
            name: Relative to the folder.
            where: What names it, for messages.

        Raises:
            InputError: If it leads out of the folder.
        """
        path = self.folder / name
        parent = str(path.parent)
        if parent not in self._parents:
            self._parents[parent] = path.parent.resolve().is_relative_to(self.root)
        inside = self._parents[parent] and path.name not in ("..", ".")
        if not inside or (path.is_symlink() and not path.resolve().is_relative_to(self.root)):
            raise InputError(f"{where}: the path {name!r} leads out of {self.folder}; use paths below it")
        return path


def read_metadata(folder: Path) -> list[Record]:
    """Read and check the metadata of one split; no picture is opened.

    Raises:
        InputError: If the file or a column is missing, a value is empty or no number, an id comes twice,
            or a path leads out of the folder; the message names file and line.
    """
    path = metadata_file(folder)
    if path is None:
        raise InputError(f"{folder}: no metadata.csv or metadata.jsonl there")
    inside, seen, records = Inside(folder), dict[str, int](), list[Record]()
    for number, row in _lines(path):
        where = f"{path} line {number}"
        for column in REQUIRED:
            if not row.get(column):
                raise InputError(f"{where}: no value for {column!r}")
        name = str(row["triplet_id"])
        if name in seen:
            raise InputError(f"{where}: triplet_id {name!r} is already on line {seen[name]}")
        seen[name] = number
        box = None
        if all(str(row.get(c) or "") for c in BOX):
            try:
                box = tuple(int(float(row[c])) for c in BOX)
            except ValueError as error:
                raise InputError(f"{where}: x0, y0, x1, y1 must be numbers") from error
        mask = str(row.get("mask_file_name") or "")
        records.append(
            Record(
                id=name,
                image_id=f"{row.get('source_dataset') or ''}/{row.get('img_id') or name}",
                original=inside(str(row[REQUIRED[1]]), where),
                target=inside(str(row[REQUIRED[2]]), where),
                object=inside(str(row[REQUIRED[3]]), where),
                mask=inside(mask, where) if mask else None,
                box=box,  # type: ignore[arg-type]
                instruction=str(row.get("instruction") or ""),
            )
        )
    if not records:
        raise InputError(f"{path}: no rows")
    return records


class TripletFolder(TripletViews):
    """Triplets of one split of a folder.

    Without a mask file the box stands in for the mask, and without a box the whole scene.

    Args:
        folder: The folder of the split, with its metadata file.
        transform: Makes tensors.
        seed: Seed of the augmentation.
        train: Augment; the random numbers depend on (seed, epoch, index) only.

    Raises:
        InputError: As `read_metadata`.
    """

    def __init__(self, folder: str | Path, transform: TripletTransform, seed: int = 0, train: bool = False) -> None:
        self.records = read_metadata(Path(folder))
        self.transform, self.seed, self.train = transform, seed, train

    def __len__(self) -> int:
        return len(self.records)

    def fingerprint(self) -> str:
        """Names and sizes of all files."""
        files = []
        for record in self.records:
            paths = (record.original, record.target, record.object, record.mask)
            files.append((record.id, record.box, [p.stat().st_size for p in paths if p is not None and p.is_file()]))
        return hashlib.blake2b(repr(files).encode(), digest_size=16).hexdigest()

    def triplet(self, index: int, generator: torch.Generator | None = None) -> Triplet:
        """One triplet as stored.

        Raises:
            BrokenSample: If one of its pictures cannot be read.
        """
        record = self.records[index]
        target = read_picture(record.target)
        if record.mask is not None:
            mask = read_picture(record.mask, "L")
        else:
            mask = Image.new("L", target.size, 0 if record.box else 255)
            if record.box:
                x0, y0, x1, y1 = record.box
                if x0 >= x1 or y0 >= y1:
                    raise BrokenSample(record.id, f"the box {record.box} is empty")
                ImageDraw.Draw(mask).rectangle((x0, y0, x1 - 1, y1 - 1), fill=255)
        source, thing = read_picture(record.original), read_picture(record.object)
        return Triplet(source, target, thing, mask, record.instruction, record.id)
