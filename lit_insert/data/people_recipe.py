"""Building a folder of pictures with masks that `MaskFolder` reads: out of a COCO file or of two loose folders."""

import csv
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_segmentation_masks

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.data.coco_masks import CocoPicture, CocoRules, read_coco
from lit_insert.data.decode import read_picture
from lit_insert.data.folder import Inside
from lit_insert.data.journal import Journal, Summary, work_through
from lit_insert.data.loading import BrokenSample, SkippedSample
from lit_insert.data.mask_check import MaskReport, looks_inverted
from lit_insert.data.mask_folder import both_by_stem, fitted, read_mask
from lit_insert.data.mask_source import IGNORE
from lit_insert.data.parquet_join import unit_hash
from lit_insert.errors import InputError
from lit_insert.images import fit_within, image_grid, save_image

TABLE, SHEET = "decisions.csv", "overview.jpg"
CROWD_VALUE = 127  # in the masks written: read as background unless MaskFolder is told to ignore it
COLUMNS = ("id", "split", "reason", "fault", "objects", "coverage", "inverted", "image", "mask")
NO_MASK, NO_PICTURE = "no mask", "no picture"


@dataclass(frozen=True)
class PeopleSettings:
    """How a folder is made; a folder is made with one set of them.

    Args:
        rules: Which pictures are used. Of loose masks only the areas and ``negatives`` count.
        size: Pictures are shrunk to this shorter side in pixels; 0 copies them as they are.
        invert: The loose masks are white where the object is not.
        val_fraction: Part of the pictures for validation.
        test_fraction: Part of the pictures for testing.
    """

    rules: CocoRules
    size: int = 0
    invert: bool = False
    val_fraction: float = 0.1
    test_fraction: float = 0.0

    def __post_init__(self) -> None:
        if min(self.val_fraction, self.test_fraction) < 0 or self.val_fraction + self.test_fraction >= 1:
            raise InputError("val_fraction and test_fraction must be 0 or more and leave something to train on")
        if self.size < 0:
            raise InputError(f"size is {self.size}; give pixels, or 0 to copy pictures as they are")

    def split_of(self, name: str) -> str:
        """The split of a picture, drawn from a hash of its name."""
        at = unit_hash(name)
        if at < self.val_fraction:
            return "val"
        return "test" if at < self.val_fraction + self.test_fraction else "train"


@dataclass(frozen=True)
class MaskCandidate:
    """A picture that may become part of the folder.

    Attributes:
        id: Its name without suffix.
        image: The file.
        mask: Its mask, or what a COCO file says of it.
        refused: Why it is not used, if that is known without looking.
    """

    id: str
    image: Path
    mask: Path | CocoPicture | None
    refused: str = ""


def loose_candidates(images: Path, masks: Path) -> list[MaskCandidate]:
    """Pair two folders by name without suffix; what has no partner is refused, not left unsaid.

    Raises:
        InputError: If a folder is missing or empty, a name comes twice, or nothing pairs.
    """
    pictures, covers = both_by_stem(images, masks)
    if not pictures.keys() & covers.keys():
        raise InputError(f"no file of {images} has a mask of the same name in {masks}")
    made = [MaskCandidate(s, p, covers.get(s), "" if s in covers else NO_MASK) for s, p in pictures.items()]
    made += [MaskCandidate(s, covers[s], None, NO_PICTURE) for s in covers.keys() - pictures.keys()]
    return sorted(made, key=lambda c: c.id)


def coco_candidates(
    annotations: Path, images: Path, categories: Sequence[str], rules: CocoRules
) -> list[MaskCandidate]:
    """All pictures of a COCO instances file, with the reason why one is not used.

    Raises:
        InputError: If the file is missing or no instances file, or a name leads out of ``images``.
    """
    if not images.is_dir():
        raise InputError(f"{images}: no such folder")
    inside = Inside(images)
    made = []
    for picture in read_coco(annotations, categories):
        name = str(Path(picture.name).with_suffix("")).replace("/", "_")
        made.append(MaskCandidate(name, inside(picture.name, str(annotations)), picture, rules.refuses(picture)))
    return made


def make_pair(candidate: MaskCandidate, out: Path, settings: PeopleSettings) -> dict[str, Any]:
    """Write a picture and its mask, and return their row of the table.

    Raises:
        SkippedSample: If the picture is refused.
        BrokenSample: If a file cannot be read or the two do not fit.
    """
    name, rules = candidate.id, settings.rules
    if candidate.refused or candidate.mask is None:
        raise SkippedSample(name, candidate.refused)
    image = read_picture(candidate.image)
    if isinstance(candidate.mask, CocoPicture):
        try:
            mask = candidate.mask.mask()
        except InputError as error:
            raise BrokenSample(str(candidate.image), str(error)) from error
        if mask.shape != (image.height, image.width):
            fault = f"is {image.width}x{image.height}, annotated as {mask.shape[1]}x{mask.shape[0]}"
            raise BrokenSample(str(candidate.image), fault)
        objects = len(candidate.mask.objects)
    else:
        mask = read_mask(candidate.mask)
        mask = fitted(1 - mask if settings.invert else mask, image, candidate.mask)
        objects = int(mask.any())
    coverage = float((mask == 1).mean())
    if not coverage and unit_hash("negative", name) >= rules.negatives:
        raise SkippedSample(name, "empty mask")
    if coverage and not rules.min_area <= coverage <= rules.max_area:
        raise SkippedSample(name, "objects too small" if coverage < rules.min_area else "objects too large")

    split = settings.split_of(name)
    scale = min(1.0, settings.size / min(image.size)) if settings.size else 1.0
    suffix = candidate.image.suffix if scale == 1 else ".jpg"
    files = {"image": f"images/{name}{suffix}", "mask": f"masks/{name}.png"}
    stored = Image.fromarray(np.where(mask == IGNORE, CROWD_VALUE, mask * np.uint8(255)).astype(np.uint8))
    if scale == 1:
        with atomic_file(out / split / files["image"]) as temporary:
            shutil.copyfile(candidate.image, temporary)
    else:
        size = (round(image.width * scale), round(image.height * scale))
        stored = stored.resize(size, Image.Resampling.NEAREST)
        save_image(image.resize(size, Image.Resampling.LANCZOS), out / split / files["image"])
    save_image(stored, out / split / files["mask"])
    return {
        "id": name,
        "split": split,
        "objects": objects,
        "coverage": round(coverage, 4),
        "inverted": int(looks_inverted(mask)),
        **files,
    }


def write_decisions(journal: Journal) -> None:
    """Write decisions.csv: a line for each candidate, sorted by id, with its split or why it is not used."""
    rows = [*journal.rows.values()]
    rows += [{"id": i, "reason": r, "fault": journal.faults.get(i, "")} for i, r in journal.dropped.items()]
    with (
        atomic_file(journal.out / TABLE) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["id"]))


def build_people(
    candidates: Iterable[MaskCandidate],
    out: Path,
    settings: PeopleSettings,
    workers: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Summary:
    """Make ``out/{train,val,test}/{images,masks}``, or finish what was begun; inputs are never changed.

    A second run with the same settings makes what is missing, and looks again at what was broken or had no partner.

    Args:
        candidates: What to look at.
        out: The folder, new or begun with the same settings.
        settings: How.
        workers: Threads; one a core if not given.
        tick: Called after each candidate.

    Raises:
        InputError: If the folder was made with other settings.
    """
    journal = Journal(out, asdict(settings), "id", ("image", "mask"), retried=("broken", NO_MASK, NO_PICTURE))

    def make(candidate: MaskCandidate) -> dict[str, Any]:
        return make_pair(candidate, out, settings)

    return work_through(candidates, make, journal, lambda: write_decisions(journal), workers, tick)


def read_decisions(out: Path) -> list[dict[str, str]]:
    """The lines of decisions.csv."""
    with (out / TABLE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def report_of(out: Path) -> MaskReport:
    """What the masks that were written show about themselves, from the table."""
    report = MaskReport(str(out))
    for row in read_decisions(out):
        if row["split"]:
            report.note(row["id"], float(row["coverage"]), row["inverted"] == "1")
        elif row["reason"] == "broken":
            report.fail(row["id"], row["fault"])
    return report


def write_sheet(out: Path, count: int = 48, across: int = 8, cell: int = 160) -> Path | None:
    """Write ``overview.jpg``: some of the pictures, objects red and crowds blue; None if there are none."""
    rows = [row for row in read_decisions(out) if row["split"]]
    chosen = [rows[i * len(rows) // min(count, len(rows))] for i in range(min(count, len(rows)))]
    if not chosen:
        return None
    cells, texts = [], []
    for row in chosen:
        image = read_picture(out / row["split"] / row["image"])
        mask = fitted(read_mask(out / row["split"] / row["mask"], CROWD_VALUE), image, Path(row["mask"]))
        layers = torch.from_numpy(np.stack([mask == 1, mask == IGNORE]))
        tinted = draw_segmentation_masks(F.pil_to_tensor(image), layers, alpha=0.5, colors=["red", "blue"])
        cells.append(fit_within(F.to_pil_image(tinted), cell))
        texts.append(f"{row['id']} {float(row['coverage']):.0%}")
    starts = range(0, len(cells), across)
    grid = image_grid(
        [cells[i : i + across] for i in starts], captions=[texts[i : i + across] for i in starts], cell=cell
    )
    return save_image(grid, out / SHEET, quality=90)
