"""What triplets can be made of: pictures with masks in two folders, or rows of PIPE."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lit_insert.data.decode import picture_bytes
from lit_insert.data.parquet_join import join, parquet_files, row_key, unit_hash
from lit_insert.data.pipe_rows import INSTRUCTIONS, MASK_COLUMNS, SOURCE_COLUMNS, open_rows
from lit_insert.errors import InputError
from lit_insert.images import images_by_stem


@dataclass(frozen=True)
class Candidate:
    """An object in a picture that may become a triplet.

    Attributes:
        dataset: Name of the collection.
        image_id: Of the picture; several objects may share it, and they share their split.
        annotation_id: Of the object in the picture.
        target: The picture, as a file or encoded.
        mask: The object's mask, as a file or encoded; any size of the same shape.
        source: The picture without the object, if there is one already.
        instruction: What adding the object would be called.
        split: Split that the collection itself prescribes.
        refused: Why it is not used, if that is known without looking.
    """

    dataset: str
    image_id: str
    annotation_id: str
    target: Path | bytes
    mask: Path | bytes
    source: Path | bytes | None = None
    instruction: str = ""
    split: str | None = None
    refused: str | None = None

    @property
    def id(self) -> str:
        """A name that is safe as a file name, and different for different objects."""
        parts = (self.dataset, self.image_id, self.annotation_id)
        plain = "-".join(parts)
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", plain).lstrip(".")[:100]
        if safe == plain and not any("-" in p for p in parts[:2]):
            return safe
        return f"{safe}-{int(unit_hash(*parts) * 16**8):08x}"


def folder_candidates(
    images: Path, masks: Path, dataset: str | None = None, instruction: str = ""
) -> tuple[list[Candidate], list[str]]:
    """Pair the pictures of two folders by file name without suffix.

    Returns:
        The candidates sorted by name, and the names that one of the folders lacks.

    Raises:
        InputError: If a folder is missing or empty, a name comes twice, or nothing pairs.
    """
    pictures, covers = images_by_stem(images), images_by_stem(masks)
    both = sorted(pictures.keys() & covers.keys())
    if not both:
        raise InputError(f"no file of {images} has a mask of the same name in {masks}")
    name = dataset or images.resolve().parent.name or "photos"
    made = [Candidate(name, s, "0", pictures[s], covers[s], instruction=instruction) for s in both]
    return made, sorted(pictures.keys() ^ covers.keys())


def pipe_candidates(source: str, masks: str, limit: int | None = None) -> Iterator[Candidate]:
    """Rows of PIPE with their masks; they bring their own picture without the object.

    The test split comes first, if there is one; of the train split, pictures that are in it are refused.

    Args:
        source: PIPE, as a folder of parquet files (read in place) or a hub id (downloaded).
        masks: PIPE_Masks, the same.
        limit: Rows to take of each split.

    Raises:
        InputError: If a table cannot be read or nothing joins.
    """
    reserved: set[tuple[str, str]] = set()
    local = Path(source).is_dir()
    splits = ["test", "train"]
    if local and not parquet_files(Path(source), "test", missing_ok=True):
        splits = ["train"]
    for split in splits:
        rows = open_rows(source, split, SOURCE_COLUMNS, INSTRUCTIONS, streaming=local)
        covers = open_rows(masks, split, MASK_COLUMNS, streaming=Path(masks).is_dir())
        if split == "test":
            reserved = {key[:2] for key in rows.join_keys()}
        numbers, partners, _ = join(rows, covers)
        for number, partner in zip(numbers[:limit].tolist(), partners[:limit].tolist(), strict=True):
            row, cover = rows.row(number), covers.row(partner)
            dataset, image_id, annotation_id = row_key(row)
            leaks = split == "train" and (dataset, image_id) in reserved
            yield Candidate(
                dataset=dataset,
                image_id=image_id,
                annotation_id=annotation_id,
                target=picture_bytes(row["target_img"]),
                mask=picture_bytes(cover["mask"]),
                source=picture_bytes(row["source_img"]),
                instruction=next((str(row[c]) for c in INSTRUCTIONS if row.get(c)), ""),
                split=split,
                refused="picture of the test split" if leaks else None,
            )
