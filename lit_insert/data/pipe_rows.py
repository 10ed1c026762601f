"""PIPE and PIPE_Masks as insertion triplets, read from local parquet or from the hub, whole or streamed."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from lit_insert.data.crops import CropRules, cut_object
from lit_insert.data.decode import decode_picture
from lit_insert.data.loading import SkippedSample
from lit_insert.data.orders import BlockOrder, Order, PlainOrder
from lit_insert.data.parquet_join import (
    KEY,
    ArrowRows,
    ParquetRows,
    Rows,
    join,
    parquet_files,
    row_key,
    unit_hash,
)
from lit_insert.data.transforms import TripletTransform
from lit_insert.data.triplets import Triplet
from lit_insert.data.views import TripletViews
from lit_insert.errors import InputError

SOURCE_COLUMNS = ("source_img", "target_img", *KEY)
MASK_COLUMNS = ("mask", *KEY)
INSTRUCTIONS = ("Instruction_VLM-LLM", "Instruction_Class", "Instruction_Ref_Dataset")


def _hub_files(source: str, split: str, revision: str | None) -> tuple[Any, list[str]]:
    """File system and parquet files of a hub data set; opens connections."""
    from huggingface_hub import HfFileSystem

    filesystem = HfFileSystem()
    root = f"datasets/{source}" + (f"@{revision}" if revision else "")
    files = sorted(filesystem.glob(f"{root}/**/{split}-*.parquet"))
    if not files:
        raise InputError(f"{source}: no parquet file of split {split!r} on the hub")
    return filesystem, files


def open_rows(
    source: str,
    split: str,
    columns: tuple[str, ...],
    optional: tuple[str, ...] = (),
    *,
    streaming: bool = False,
    revision: str | None = None,
    cache_dir: str | None = None,
) -> Rows:
    """Rows of one split of a table.

    Args:
        source: A folder of parquet files, or a hub id ``owner/name``.
        split: "train" or "test".
        columns: Columns that must be there.
        optional: Columns read where they are there.
        streaming: Read the parquet files in place, from the hub over the network; otherwise `datasets`
            converts them once to a memory-mapped copy in its cache, and any row is reached at once.
        revision: Of a hub data set.
        cache_dir: Where `datasets` keeps the copy.

    Raises:
        InputError: If there is no such folder, split or column.
    """
    local = Path(source).is_dir()
    if not local and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise InputError(f"{source}: no such folder (and not a hub id like owner/name)")
    if streaming:
        if local:
            return ParquetRows(parquet_files(Path(source), split), columns, optional)
        filesystem, files = _hub_files(source, split, revision)
        return ParquetRows(files, columns, optional, filesystem)
    import datasets

    if local:
        paths = [str(p) for p in parquet_files(Path(source), split)]
        ParquetRows(paths, columns)  # names the file that is broken or lacks a column
        table: Any = datasets.Dataset.from_parquet(paths, cache_dir=cache_dir)  # type: ignore[arg-type]
    else:
        try:
            table = datasets.load_dataset(source, split=split, revision=revision, cache_dir=cache_dir)
        except (OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{source}: cannot be loaded from the hub: {reason}") from error
    return ArrowRows(table, columns, optional, title=source)


class PipeTriplets(TripletViews):
    """Triplets from joined rows of PIPE and PIPE_Masks; the object is cut from the target by the mask.

    Args:
        source: Rows with ``source_img``, ``target_img`` and the key.
        masks: Rows with ``mask`` and the key.
        pairs: (source row, mask row) numbers, int64 (length, 2).
        transform: Makes tensors.
        rules: Which objects are used, and how they are cut.
        seed: Seed of the augmentation.
        train: Augment, and draw among the instructions of a row; the random numbers depend on (seed,
            epoch, index).
    """

    def __init__(
        self,
        source: Rows,
        masks: Rows,
        pairs: np.ndarray,
        transform: TripletTransform,
        rules: CropRules,
        seed: int = 0,
        train: bool = False,
    ) -> None:
        self.source, self.masks, self.pairs = source, masks, pairs
        self.transform, self.rules, self.seed, self.train = transform, rules, seed, train
        self.blocks: BlockOrder | None = None
        self._sized = False

    def __len__(self) -> int:
        return len(self.pairs)

    def fingerprint(self) -> str:
        """Names and numbers of all rows, and the crop rules."""
        digest = hashlib.blake2b(self.pairs.tobytes(), digest_size=16)
        for row, _ in self.pairs[:: max(1, len(self.pairs) // 1000)]:
            digest.update(self.source.name(int(row)).encode())
        digest.update(repr(self.rules).encode())
        return digest.hexdigest()

    def order(self, shuffle: bool, window: int, num_workers: int) -> Order:
        """The order that suits the storage: any row at once, or row group by row group."""
        if not isinstance(self.source, ParquetRows):
            return PlainOrder(len(self), self.seed, shuffle)
        groups = self.source.group_of(self.pairs[:, 0])
        self.blocks = BlockOrder(groups, self.seed, shuffle, window, max(1, num_workers))
        return self.blocks

    def _fit_caches(self) -> None:
        """Keep as many rows as the lanes that this process serves need; once per process."""
        self._sized = True
        if self.blocks is None:
            return
        worker = get_worker_info()
        lanes = math.ceil(self.blocks.lanes / (worker.num_workers if worker else 1))
        for rows in (self.source, self.masks):
            if isinstance(rows, ParquetRows):
                rows.cache_rows = lanes * (self.blocks.window + 2 * rows.largest_group)

    def triplet(self, index: int, generator: torch.Generator | None = None) -> Triplet:
        """One triplet as stored, the object cut out.

        Raises:
            SkippedSample: If the rules drop the object.
            BrokenSample: If a picture cannot be decoded.
            InputError: If the mask row has another key.
        """
        if not self._sized:
            self._fit_caches()
        row_number, mask_number = (int(n) for n in self.pairs[index])
        row, mask_row = self.source.row(row_number), self.masks.row(mask_number)
        key = row_key(row)
        if key != row_key(mask_row):
            raise InputError(
                f"{self.source.name(row_number)} is {'/'.join(key)} but {self.masks.name(mask_number)} is "
                f"{'/'.join(row_key(mask_row))}: not in one order; join them with streaming: false"
            )
        name = "-".join(key)

        def decode(cells: dict[str, Any], column: str, mode: Any, where: Callable[[], str]) -> Any:
            if not cells[column]:
                return decode_picture(None, f"{name} {column} ({where()})")
            return decode_picture(cells[column], f"{name} {column}", mode)

        target = decode(row, "target_img", "RGB", lambda: self.source.name(row_number))
        source = decode(row, "source_img", "RGB", lambda: self.source.name(row_number))
        mask = decode(mask_row, "mask", "L", lambda: self.masks.name(mask_number))
        crop = cut_object(target, mask, self.rules, lambda reason: SkippedSample(name, reason), unit_hash("pad", *key))
        return Triplet(source, target, crop.image, mask, self._instruction(row, generator), name)

    def _instruction(self, row: dict[str, Any], generator: torch.Generator | None) -> str:
        texts = [str(row[c]) for c in INSTRUCTIONS if row.get(c)]
        if not texts:
            return ""
        if generator is None:
            return texts[0]
        return texts[int(torch.randint(len(texts), (), generator=generator))]


def aligned(source: Rows, masks: Rows, title: str) -> np.ndarray:
    """Pair row with row, for tables whose keys are too far away to read.

    `PipeTriplets` compares the keys of every pair that it reads.

    Raises:
        InputError: If the tables differ in length.
    """
    if len(source) != len(masks):
        raise InputError(f"{title}: {len(source)} rows but {len(masks)} masks; download both and set streaming: false")
    return np.stack([np.arange(len(source))] * 2, 1)


def joined(source: Rows, masks: Rows, low: float = 0.0, high: float = 1.0) -> tuple[np.ndarray, int]:
    """Join, and keep pictures whose split number lies in [low, high).

    Returns:
        (source row, mask row) numbers, int64 (pairs, 2), and the number of source rows without a mask.
    """
    rows, partners, splits = join(source, masks)
    chosen = (splits >= low) & (splits < high)
    return np.stack([rows, partners], 1)[chosen], len(source) - len(rows)
