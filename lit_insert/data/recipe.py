"""Building a folder of triplets: idempotent, interruptible, with a reason for everything left out."""

import csv
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.data.candidates import Candidate
from lit_insert.data.crops import CropRules, cut_object
from lit_insert.data.decode import decode_picture, read_picture
from lit_insert.data.folder import SPLITS
from lit_insert.data.journal import Journal, Summary, work_through
from lit_insert.data.loading import SkippedSample
from lit_insert.data.parquet_join import unit_hash
from lit_insert.data.removers import Remover
from lit_insert.errors import InputError
from lit_insert.images import save_image

COLUMNS = (
    "triplet_id",
    "img_id",
    "ann_id",
    "source_dataset",
    "original_image_file_name",
    "target_image_file_name",
    "object_image_file_name",
    "mask_file_name",
    "x0",
    "y0",
    "x1",
    "y1",
    "area_frac",
    "instruction",
)
FILES = tuple(c for c in COLUMNS if c.endswith("_file_name"))


@dataclass(frozen=True)
class Settings:
    """How triplets are made; a folder is made with one set of them.

    Args:
        rules: Which objects are used, and how they are cut.
        size: Pictures are shrunk to this shorter side in pixels; 0 keeps them as they are.
        suffix: ".png" (lossless) or ".jpg" for pictures that have to be encoded.
        val_fraction: Part of the pictures for validation.
        test_fraction: Part of the pictures for testing, unless the collection has a test split.
    """

    rules: CropRules = field(default_factory=CropRules)
    size: int = 512
    suffix: str = ".png"
    val_fraction: float = 0.05
    test_fraction: float = 0.05

    def __post_init__(self) -> None:
        if min(self.val_fraction, self.test_fraction) < 0 or self.val_fraction + self.test_fraction >= 1:
            raise InputError("val_fraction and test_fraction must be 0 or more and leave something to train on")
        if self.suffix not in (".png", ".jpg"):
            raise InputError(f"format {self.suffix!r}: give .png or .jpg")

    def split_of(self, candidate: Candidate) -> str:
        """The collection's own split, or one drawn from a hash of (dataset, image id)."""
        if candidate.split == "test":
            return "test"
        at = unit_hash(candidate.dataset, candidate.image_id)
        if at < self.val_fraction:
            return "val"
        official = candidate.split is not None
        return "test" if not official and at < self.val_fraction + self.test_fraction else "train"


def _open(picture: Path | bytes, name: str, mode: Any) -> Image.Image:
    return read_picture(picture, mode) if isinstance(picture, Path) else decode_picture(picture, name, mode)


def make_triplet(candidate: Candidate, out: Path, settings: Settings, remover: Remover) -> dict[str, Any]:
    """Make one triplet's files and return its metadata row, which also has ``split``.

    Encoded pictures that need no change are stored byte for byte, so nothing is compressed twice.

    Raises:
        SkippedSample: If the rules drop the object.
        BrokenSample: If a picture cannot be read.
    """
    name, split = candidate.id, settings.split_of(candidate)
    if candidate.refused:
        raise SkippedSample(name, candidate.refused)
    target = _open(candidate.target, f"{name} target", "RGB")
    mask = _open(candidate.mask, f"{name} mask", "L")
    if abs(mask.width * target.height / (mask.height * target.width) - 1) > 0.03:
        raise SkippedSample(name, "mask of another shape")
    original = None
    if candidate.source is not None:
        original = _open(candidate.source, f"{name} source", "RGB")
    scale = min(1.0, settings.size / min(target.size)) if settings.size else 1.0
    as_is = scale == 1 and (original is None or original.size == target.size)
    if scale < 1:
        size = (round(target.width * scale), round(target.height * scale))
        target = target.resize(size, Image.Resampling.LANCZOS)
    if mask.size != target.size:
        mask = mask.resize(target.size, Image.Resampling.BILINEAR)
    mask = mask.point([0] * settings.rules.threshold + [255] * (256 - settings.rules.threshold))
    crop = cut_object(
        target,
        mask,
        settings.rules,
        lambda reason: SkippedSample(name, reason),
        unit_hash("pad", candidate.dataset, candidate.image_id, candidate.annotation_id),
    )
    if original is None:
        original = remover(target, mask, name)
    elif original.size != target.size:
        original = original.resize(target.size, Image.Resampling.LANCZOS)

    folder, files = out / split, {}
    for kind, image, given in (
        ("original", original, candidate.source),
        ("target", target, candidate.target),
        ("object", crop.image, None),
        ("mask", mask, None),
    ):
        verbatim = as_is and isinstance(given, bytes) and given[:3] == b"\xff\xd8\xff"
        suffix = ".jpg" if verbatim else ".png" if kind == "mask" else settings.suffix
        path = folder / kind / f"{name}{suffix}"
        if verbatim:
            with atomic_file(path) as temporary:
                temporary.write_bytes(given)  # type: ignore[arg-type]
        else:
            save_image(image, path)
        files[kind] = f"{kind}/{path.name}"
    return {
        "split": split,
        "triplet_id": name,
        "img_id": candidate.image_id,
        "ann_id": candidate.annotation_id,
        "source_dataset": candidate.dataset,
        "original_image_file_name": files["original"],
        "target_image_file_name": files["target"],
        "object_image_file_name": files["object"],
        "mask_file_name": files["mask"],
        **dict(zip(("x0", "y0", "x1", "y1"), crop.box, strict=True)),
        "area_frac": round(crop.area, 6),
        "instruction": candidate.instruction,
    }


def write_metadata(journal: Journal) -> None:
    """Write each split's metadata.csv, sorted by id, in one step each."""
    for split in SPLITS:
        rows = sorted((r for r in journal.rows.values() if r["split"] == split), key=lambda r: r["triplet_id"])
        if rows:
            with (
                atomic_file(journal.out / split / "metadata.csv") as temporary,
                temporary.open("w", encoding="utf-8", newline="") as file,
            ):
                writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


def build(
    candidates: Iterable[Candidate],
    out: Path,
    settings: Settings,
    remover: Remover,
    workers: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Summary:
    """Make a folder of triplets, or finish one that was begun.

    Whenever it stops, each metadata.csv names only files that are whole. A second run with the same settings makes
    what is missing and leaves the rest as it is.

    Args:
        candidates: What to make triplets of.
        out: The folder, new or begun with the same settings.
        settings: How.
        remover: Takes the object out of scenes that come without a version that lacks it.
        workers: Threads; one a core if not given.
        tick: Called after each candidate.

    Raises:
        InputError: If the folder was made with other settings.
    """
    journal = Journal(out, {**asdict(settings), "remover": remover.name}, "triplet_id", FILES)

    def make(candidate: Candidate) -> dict[str, Any]:
        return make_triplet(candidate, out, settings, remover)

    return work_through(candidates, make, journal, lambda: write_metadata(journal), workers, tick)
