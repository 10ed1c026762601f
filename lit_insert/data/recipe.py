"""Building a folder of triplets: idempotent, interruptible, with a reason for everything left out."""

import csv
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.data.candidates import Candidate
from lit_insert.data.crops import CropRules, cut_object
from lit_insert.data.decode import decode_picture, read_picture
from lit_insert.data.folder import SPLITS
from lit_insert.data.loading import BrokenSample, SkippedSample
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
JOURNAL = ".prepared.jsonl"
_FLUSH = 50


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


@dataclass
class Summary:
    """What a run of `build` did.

    Attributes:
        made: Triplets in the folder, by split.
        new: Triplets made in this run.
        dropped: Candidates left out, by reason.
        broken: Names and faults of pictures that cannot be read.
    """

    made: Counter[str] = field(default_factory=Counter)
    new: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)


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


class Journal:
    """What has become of each candidate, one line each, so that a later run need not look again.

    Args:
        out: The folder being made.
        settings: How; a folder made in another way is refused.

    Raises:
        InputError: If the folder was made with other settings, or holds something else.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.out, self.path = out, out / JOURNAL
        self.rows: dict[str, dict[str, Any]] = {}
        self.dropped: dict[str, str] = {}
        lines = self.path.read_text(encoding="utf-8").split("\n") if self.path.exists() else []
        kept = [line for line in lines[:-1] if line]  # what follows the last line break was cut short by a kill
        if kept:
            before = json.loads(kept[0])
            for key in settings:
                if before.get(key) != settings[key]:
                    raise InputError(
                        f"{out}: was made with {key} {before.get(key)}, not {settings[key]}; choose another folder"
                    )
        elif out.is_dir() and any(p for p in out.iterdir() if not p.name.startswith(".")):
            raise InputError(f"{out}: is not empty and was not made by this recipe; choose another folder")
        for line in kept[1:]:
            self._take(json.loads(line))
        out.mkdir(parents=True, exist_ok=True)
        for leftover in (*out.glob(".metadata.*"), *out.glob("*/.metadata.*"), *out.glob("*/*/.*.*")):
            leftover.unlink()  # temporary files of a run that was killed
        with atomic_file(self.path) as temporary:
            temporary.write_text("\n".join(kept or [json.dumps(settings)]) + "\n", encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")

    def _take(self, entry: dict[str, Any]) -> None:
        if "dropped" in entry:
            self.dropped[entry["id"]] = entry["dropped"]
        else:
            self.dropped.pop(entry["triplet_id"], None)
            self.rows[entry["triplet_id"]] = entry

    def done(self, name: str) -> bool:
        """Whether a candidate was dropped, or made with all its files still there."""
        row = self.rows.get(name)
        if row is None:
            return self.dropped.get(name, "broken") != "broken"  # a broken picture may have been mended
        files = (row[c] for c in COLUMNS if c.endswith("_file_name"))
        return all((self.out / row["split"] / f).is_file() for f in files)

    def add(self, entry: dict[str, Any]) -> None:
        """Note the outcome of one candidate."""
        self._take(entry)
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def write_metadata(self) -> None:
        """Write each split's metadata.csv, sorted by id, in one step each."""
        for split in SPLITS:
            rows = sorted((r for r in self.rows.values() if r["split"] == split), key=lambda r: r["triplet_id"])
            if rows:
                with (
                    atomic_file(self.out / split / "metadata.csv") as temporary,
                    temporary.open("w", encoding="utf-8", newline="") as file,
                ):
                    writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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
    summary = Summary()
    journal = Journal(out, {**asdict(settings), "remover": remover.name})

    def outcome(candidate: Candidate) -> dict[str, Any]:
        try:
            return make_triplet(candidate, out, settings, remover)
        except BrokenSample as error:
            return {"id": candidate.id, "dropped": "broken", "name": error.name, "fault": error.reason}
        except SkippedSample as error:
            return {"id": candidate.id, "dropped": error.reason}

    def note(entry: dict[str, Any]) -> None:
        if entry.get("dropped") == "broken":
            summary.broken[entry["name"]] = entry["fault"]
        journal.add(entry)
        if "dropped" not in entry:
            summary.new += 1
            if summary.new % _FLUSH == 0:
                journal.write_metadata()
        tick()

    count = workers or os.cpu_count() or 1
    seen: set[str] = set()
    waiting: deque[Future[dict[str, Any]]] = deque()
    pool = ThreadPoolExecutor(count)
    try:
        for candidate in candidates:
            repeated = candidate.id in seen
            seen.add(candidate.id)
            summary.dropped["same object twice"] += repeated
            if repeated or journal.done(candidate.id):
                tick()
                continue
            waiting.append(pool.submit(outcome, candidate))
            if len(waiting) >= 2 * count:
                note(waiting.popleft().result())
        while waiting:
            note(waiting.popleft().result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        journal.write_metadata()
        journal.close()
    summary.made.update(row["split"] for row in journal.rows.values())
    summary.dropped.update(journal.dropped.values())
    summary.dropped += Counter()  # without the zeros
    return summary
