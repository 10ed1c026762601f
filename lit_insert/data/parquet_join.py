"""Rows of parquet tables by number, and the join of PIPE with PIPE_Masks on (dataset, img_id, ann_id)."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lit_insert.errors import InputError

KEY = ("target_img_dataset", "img_id", "ann_id")
_SPLITS = ("train", "val", "validation", "test")


class Rows(Protocol):
    """A table whose rows are fetched by number."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> dict[str, Any]:
        """One row; images are dicts with ``bytes`` or plain bytes."""

    def name(self, index: int) -> str:
        """Where the row is stored, for messages."""

    def join_keys(self) -> Iterator[tuple[str, str, str]]:
        """The join key of every row, in order; reads no image."""


def parquet_files(folder: Path, split: str, *, missing_ok: bool = False) -> list[Path]:
    """The parquet files of a split: named ``split-*.parquet`` or in a folder ``split``.

    Files that name no split at all are the training split.

    Args:
        folder: Searched with its subfolders.
        split: "train", "val" or "test".
        missing_ok: Return an empty list if there is no file of this split.

    Raises:
        InputError: If the folder holds no parquet file, or none of this split.
    """
    files = sorted(p for p in folder.rglob("*.parquet") if not p.name.startswith("."))
    if not files:
        raise InputError(f"{folder}: no .parquet file there")

    def split_of(path: Path) -> str | None:
        for word in (path.name.split("-")[0].split(".")[0], *path.relative_to(folder).parts[-2:-1]):
            if word in _SPLITS:
                return "val" if word == "validation" else word
        return None

    found = [p for p in files if (split_of(p) or "train") == split]
    if not found and not missing_ok:
        there = ", ".join(sorted({split_of(p) or "train" for p in files}))
        raise InputError(f"{folder}: no parquet file of split {split!r}; there is {there}")
    return found


class ParquetRows:
    """Rows read from row groups on demand; the most recent groups stay in memory.

    Cheap for orders that stay within few row groups at a time (`BlockOrder`); memory does not grow with
    the table.

    Args:
        files: Parquet files in order, paths in ``filesystem``.
        columns: Columns to read with a row; all if not given.
        optional: Columns to read as well where the table has them.
        filesystem: An fsspec filesystem, for example ``huggingface_hub.HfFileSystem()``; local disk if not
            given.
        cache_rows: Rows kept in memory, at least the two latest row groups.

    Raises:
        InputError: If a file is no parquet file or lacks a column.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        columns: Sequence[str] | None = None,
        optional: Sequence[str] = (),
        filesystem: Any = None,
        cache_rows: int = 2000,
    ) -> None:
        self.files = [str(f) for f in files]
        self.columns = list(columns) if columns else None
        self.filesystem, self.cache_rows = filesystem, cache_rows
        self._open: dict[str, pq.ParquetFile] = {}
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        self._pid = os.getpid()
        counts, places = [], []
        for number, path in enumerate(self.files):
            metadata = self._file(path).metadata
            names = set(self._file(path).schema_arrow.names)
            if missing := [c for c in columns or () if c not in names]:
                raise InputError(f"{path}: no column {missing[0]!r}; it has {', '.join(sorted(names))}")
            if self.columns:
                self.columns += [c for c in optional if c in names and c not in self.columns]
            for group in range(metadata.num_row_groups):
                counts.append(metadata.row_group(group).num_rows)
                places.append((number, group))
            self._open.clear()
        self._places = places
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.largest_group = max(counts, default=0)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_groups": OrderedDict(), "_pid": -1}

    def group_of(self, indices: np.ndarray) -> np.ndarray:
        """Row group of each row, numbered over all files."""
        return np.searchsorted(self._starts, indices, side="right") - 1

    def _file(self, path: str) -> pq.ParquetFile:
        if os.getpid() != self._pid:  # a forked worker must not share file offsets with its parent
            self._open, self._groups, self._pid = {}, OrderedDict(), os.getpid()
        if path not in self._open:
            try:
                source: Any = self.filesystem.open(path, "rb") if self.filesystem else path
                self._open[path] = pq.ParquetFile(source)
            except (pa.ArrowInvalid, OSError) as error:
                raise InputError(f"{path}: not a readable parquet file: {error}".splitlines()[0]) from error
        return self._open[path]

    def _group(self, group: int) -> pa.Table:
        file, within = self._places[group]
        parquet = self._file(self.files[file])
        if group in self._groups:
            self._groups.move_to_end(group)
            return self._groups[group]
        for path in list(self._open):
            if path != self.files[file] and len(self._open) > 8:
                del self._open[path]
        try:
            table = parquet.read_row_group(within, columns=self.columns, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{self.files[file]}: row group {within} cannot be read: {reason}") from error
        self._groups[group] = table
        while len(self._groups) > 2 and sum(map(len, self._groups.values())) - self._oldest() >= self.cache_rows:
            self._groups.popitem(last=False)
            pa.default_memory_pool().release_unused()  # else the pool keeps what the group had
        return table

    def _oldest(self) -> int:
        return len(next(iter(self._groups.values())))

    def row(self, index: int) -> dict[str, Any]:
        """One row as plain Python values."""
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._group(group).slice(index - int(self._starts[group]), 1).to_pylist()[0]

    def name(self, index: int) -> str:
        """File and row, for messages."""
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        file = self._places[group][0]
        first = next(g for g, place in enumerate(self._places) if place[0] == file)
        return f"{self.files[file]} row {index - int(self._starts[first])}"

    def join_keys(self) -> Iterator[tuple[str, str, str]]:
        """The join key of every row; reads the key columns only."""
        for path in self.files:
            parquet = self._file(path)
            if missing := [c for c in KEY if c not in parquet.schema_arrow.names]:
                raise InputError(f"{path}: no column {missing[0]!r} to join on")
            for batch in parquet.iter_batches(65536, columns=list(KEY), use_threads=False):
                columns = [batch.column(name).to_pylist() for name in KEY]
                for parts in zip(*columns, strict=True):
                    yield (str(parts[0]), str(parts[1]), str(parts[2]))


class ArrowRows:
    """Rows of a `datasets.Dataset`, memory-mapped, so that any row is reached at once.

    Args:
        dataset: From ``datasets.load_dataset`` or ``Dataset.from_parquet``.
        columns: Columns to read with a row; all if not given.
        optional: Columns to read as well where the table has them.
        title: Name for messages.

    Raises:
        InputError: If a column is missing.
    """

    def __init__(
        self,
        dataset: Any,
        columns: Sequence[str] | None = None,
        optional: Sequence[str] = (),
        title: str = "dataset",
    ) -> None:
        names = dataset.column_names
        if missing := [c for c in columns or () if c not in names]:
            raise InputError(f"{title}: no column {missing[0]!r}; it has {', '.join(sorted(names))}")
        self.title = title
        self._all = dataset.with_format("arrow")
        self._rows = self._all
        if columns:
            extra = [c for c in optional if c in names and c not in columns]
            self._rows = self._all.select_columns([*columns, *extra])

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> dict[str, Any]:
        """One row as plain Python values."""
        return self._rows[index : index + 1].to_pylist()[0]

    def name(self, index: int) -> str:
        """Title and row, for messages."""
        return f"{self.title} row {index}"

    def column(self, name: str) -> list[Any]:
        """All values of one column as plain Python values."""
        return self._all.select_columns([name])[:].column(name).to_pylist()

    def class_names(self, name: str) -> list[str] | None:
        """Names of a column's classes by number, where the table says so."""
        names = getattr(self._all.features[name], "names", None)
        return list(names) if names else None

    def join_keys(self) -> Iterator[tuple[str, str, str]]:
        """The join key of every row; reads the key columns only."""
        if missing := [c for c in KEY if c not in self._all.column_names]:
            raise InputError(f"{self.title}: no column {missing[0]!r} to join on")
        keys = self._all.select_columns(list(KEY))
        for start in range(0, len(keys), 65536):
            table = keys[start : start + 65536]
            columns = [table.column(name).to_pylist() for name in KEY]
            for parts in zip(*columns, strict=True):
                yield (str(parts[0]), str(parts[1]), str(parts[2]))


def row_key(row: dict[str, Any]) -> tuple[str, str, str]:
    """(dataset, img_id, ann_id) of a row, as strings whatever the column types."""
    return (str(row[KEY[0]]), str(row[KEY[1]]), str(row[KEY[2]]))


def unit_hash(*parts: str) -> float:
    """A number in [0, 1) that depends on the strings only; splits and paddings are drawn from it."""
    digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _scan(rows: Rows, title: str) -> tuple[np.ndarray, np.ndarray]:
    """Per row a 64-bit hash of its key and the split number of its picture; no key may come twice."""
    hashes, splits = np.empty(len(rows), np.uint64), np.empty(len(rows))
    for number, key in enumerate(rows.join_keys()):
        digest = hashlib.blake2b("\x1f".join(key).encode(), digest_size=8).digest()
        hashes[number] = int.from_bytes(digest, "little")
        splits[number] = unit_hash(key[0], key[1])
    order = np.argsort(hashes, kind="stable")
    twice = order[1:][hashes[order[1:]] == hashes[order[:-1]]]
    if len(twice):
        key = next(k for n, k in enumerate(rows.join_keys()) if n == twice[0])
        raise InputError(f"{title}: the key {'/'.join(key)} comes twice; remove one of the rows")
    return hashes, splits


def join(
    source: Rows, masks: Rows, *, source_title: str = "PIPE", masks_title: str = "PIPE_Masks"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match rows by (target_img_dataset, img_id, ann_id), whatever the order of the two tables.

    Keeps 8 bytes a key, not the keys: 888,000 rows need some 30 MB while joining. `row_key` of both rows
    is compared again when a pair is read, so even a hash collision cannot pair the wrong rows.

    Returns:
        Source row numbers (ascending), mask row numbers, and per pair the split number of its picture in
        [0, 1): equal for all rows of one (dataset, img_id). Source rows without a mask are absent.

    Raises:
        InputError: If a key comes twice in either table, or nothing matches.
    """
    wanted, splits = _scan(source, source_title)
    given, _ = _scan(masks, masks_title)
    order = np.argsort(given, kind="stable")
    if not len(given):
        raise InputError(f"{masks_title}: no rows")
    place = np.minimum(np.searchsorted(given, wanted, sorter=order), len(given) - 1)
    partner = order[place]
    rows = np.flatnonzero(given[partner] == wanted)
    if not len(rows):
        raise InputError(f"no row of {source_title} has its (dataset, img_id, ann_id) in {masks_title}")
    return rows, partner[rows], splits[rows]
