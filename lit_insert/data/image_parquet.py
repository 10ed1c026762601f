"""Pictures in a parquet table as an image source: CIFAR-10 and its like, as `datasets` stores them."""

from pathlib import Path
from typing import Any

from PIL import Image

from lit_insert.data.decode import decode_picture
from lit_insert.data.image_folder import class_order
from lit_insert.data.image_source import StoredSource
from lit_insert.data.parquet_join import ArrowRows, ParquetRows
from lit_insert.data.pipe_rows import open_rows
from lit_insert.errors import InputError


class ParquetImages(StoredSource):
    """Rows of a parquet table with an encoded picture and, if wanted, a class.

    Args:
        path: A folder of parquet files (``train.parquet``, ``test-00000-of-00001.parquet`` …), one parquet file, or
            a hub id ``owner/name``.
        split: Which files of a folder, or which split on the hub: train, val or test.
        image: Column of the pictures: ``{"bytes": …}`` or plain bytes.
        label: Column of the classes, whole numbers or names; null for none.
        start: First row used.
        stop: Row to stop before; null for the last. Two sources on one split make a validation set of its end.
        revision: Of a hub data set.
        cache_dir: Where `datasets` keeps its memory-mapped copy.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        image: str = "image",
        label: str | None = None,
        start: int = 0,
        stop: int | None = None,
        revision: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        self.path, self.split, self.image, self.column = path, split, image, label
        self.start, self.stop = start, stop
        self.revision, self.cache_dir = revision, cache_dir
        self._rows: ArrowRows | None = None
        self._classes: list[str] = []
        self._labels: list[int] = []

    def prepare(self) -> None:
        """Download, and make the memory-mapped copy."""
        self._table()

    def _table(self) -> ArrowRows:
        columns = (self.image,) if self.column is None else (self.image, self.column)
        if Path(self.path).is_file():
            import datasets

            ParquetRows([self.path], columns)  # names the file that is broken or lacks a column
            table: Any = datasets.Dataset.from_parquet(self.path, cache_dir=self.cache_dir)  # type: ignore[arg-type]
            return ArrowRows(table, columns, title=self.path)
        options: dict[str, Any] = {"revision": self.revision, "cache_dir": self.cache_dir}
        rows = open_rows(self.path, self.split, columns, **options)
        assert isinstance(rows, ArrowRows)
        return rows

    def open(self) -> None:
        """Map the table and read the column of classes."""
        if self._rows is not None:
            return
        rows = self._table()
        stop = len(rows) if self.stop is None else self.stop
        if not 0 <= self.start < stop <= len(rows):
            raise InputError(f"{self.path}: rows {self.start} to {stop} asked for, there are {len(rows)}")
        self._span = range(self.start, stop)
        if self.column is not None:
            self._number(rows.column(self.column), rows.class_names(self.column))
        self._rows = rows

    def _number(self, values: list[Any], names: list[str] | None) -> None:
        if all(isinstance(v, int) and v >= 0 for v in values):
            self._classes = names or [str(n) for n in range(max(values) + 1)]
            self._labels = values
        elif all(isinstance(v, str) for v in values):
            self._classes = class_order(set(values))
            ids = {name: number for number, name in enumerate(self._classes)}
            self._labels = [ids[v] for v in values]
        else:
            raise InputError(f"{self.path}: column {self.column!r} must hold whole numbers from 0, or names")

    @property
    def classes(self) -> list[str]:
        """Names of the classes by id."""
        return self._classes

    @property
    def _table_rows(self) -> ArrowRows:
        self.open()
        assert self._rows is not None
        return self._rows

    def __len__(self) -> int:
        self.open()
        return len(self._span)

    def name(self, index: int) -> str:
        """Split and row."""
        return f"{self.split}-{self._span[index]}"

    def label(self, index: int) -> int:
        """Class id."""
        return self._labels[self._span[index]]

    def picture(self, index: int) -> Image.Image:
        """One picture, upright, RGB."""
        row = self._span[index]
        return decode_picture(self._table_rows.row(row)[self.image], f"{self.path} {self.split} row {row}")
