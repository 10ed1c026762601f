"""A folder of pictures as an image source, with class labels from file or folder names."""

from pathlib import Path
from typing import Literal

from PIL import Image

from lit_insert.data.decode import read_picture
from lit_insert.data.folder import SPLITS
from lit_insert.data.image_source import StoredSource
from lit_insert.data.parquet_join import unit_hash
from lit_insert.errors import InputError
from lit_insert.images import list_images

VARIANT = "+"  # face.png and face+hat.png are one picture, and are always in one split


def class_order(names: set[str]) -> list[str]:
    """Class names by id: as numbers if all of them are whole numbers, else in order of their characters."""
    return sorted(names, key=lambda n: (int(n), n)) if all(n.isdecimal() for n in names) else sorted(names)


class ImageFolder(StoredSource):
    """All pictures below a folder: jpg, png, gif (first frame), webp, bmp and tiff, in any depth.

    They come upright (EXIF), as RGB: palettes, greys and 16 bits are converted, transparency is laid over white.

    Args:
        folder: The folder.
        split: all; or train, val or test: the subfolder of that name where there are such subfolders, else a part
            of the pictures, drawn from a hash of the file name. ``face.png`` and its variants ``face+hat.png``,
            ``face+sunglasses.png`` share a split.
        labels: none; prefix: the class is the file name up to the first underscore (``cat_12.jpg``); folder: the
            class is the first folder below (``cat/12.jpg``).
        classes: Class names by id; by default all that occur in any split, in order.
        val_fraction: Part of the pictures for split val, where there are no subfolders.
        test_fraction: Part of the pictures for split test, where there are no subfolders.
    """

    def __init__(
        self,
        folder: str,
        split: Literal["all", "train", "val", "test"] = "all",
        labels: Literal["none", "prefix", "folder"] = "none",
        classes: list[str] | None = None,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
    ) -> None:
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise InputError("val_fraction and test_fraction must be 0 or more and leave something to train on")
        if classes is not None and len(set(classes)) != len(classes):
            raise InputError(f"classes name one class twice: {', '.join(classes)}")
        self.folder, self.split, self.labels = Path(folder), split, labels
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self._given = classes
        if classes is not None and labels == "none":
            raise InputError("classes are given but labels is none; set labels: prefix or folder")
        self._ids: dict[str, int] = {}
        self._files: list[Path] | None = None
        self._names: list[str] = []  # class name of each file

    def open(self) -> None:
        """List the files; none is read."""
        if self._files is not None:
            return
        parts = [s for s in SPLITS if (self.folder / s).is_dir()]
        if parts and self.split not in ("all", *parts):
            raise InputError(f"{self.folder}: has no {self.split}/ beside {', '.join(p + '/' for p in parts)}")
        roots = [self.folder / s for s in parts] or [self.folder]
        every = [(root, path) for root in roots for path in list_images(root, recursive=True)]
        names = [self._class_of(root, path) for root, path in every]
        chosen = [i for i, (root, path) in enumerate(every) if self.split in ("all", self._split_of(root, path, parts))]
        if not chosen:
            raise InputError(
                f"{self.folder}: none of {len(every)} pictures is in split {self.split!r}; "
                "raise val_fraction or test_fraction"
            )
        self._files = [every[i][1] for i in chosen]
        self._names = [names[i] for i in chosen]
        if self.labels != "none":
            self.use_classes(class_order(set(names)) if self._given is None else self._given)

    def _class_of(self, root: Path, path: Path) -> str:
        inside = path.relative_to(root)
        if self.labels == "prefix":
            name, underscore, _ = path.name.partition("_")
            if not (name and underscore):
                raise InputError(f"{path}: no class prefix; name it <class>_{path.name} or set labels: none")
            return name
        if self.labels == "folder":
            if len(inside.parts) < 2:
                raise InputError(f"{path}: not in a class folder; move it to one or set labels: none")
            return inside.parts[0]
        return ""

    def _split_of(self, root: Path, path: Path, parts: list[str]) -> str:
        if root != self.folder:
            return root.name
        stem = path.stem.partition("_")[2] if self.labels == "prefix" else path.stem
        at = unit_hash(path.relative_to(root).parent.as_posix(), stem.partition(VARIANT)[0] or stem)
        if at < self.val_fraction:
            return "val"
        return "test" if at < self.val_fraction + self.test_fraction else "train"

    @property
    def classes(self) -> list[str]:
        """Names of the classes by id."""
        return list(self._ids)

    def use_classes(self, classes: list[str]) -> None:
        """Take over a numbering that covers this folder's classes."""
        if bool(classes) != (self.labels != "none"):
            super().use_classes(classes)
        if unknown := sorted(set(self._names) - {"", *classes}):
            raise InputError(f"{self.folder}: class {unknown[0]!r} is none of {', '.join(classes[:20])}")
        self._ids = {name: number for number, name in enumerate(classes)}

    @property
    def _list(self) -> list[Path]:
        self.open()
        assert self._files is not None
        return self._files

    def __len__(self) -> int:
        return len(self._list)

    def name(self, index: int) -> str:
        """Path below the folder, with slashes."""
        return self._list[index].relative_to(self.folder).as_posix()

    def label(self, index: int) -> int:
        """Class id."""
        return self._ids[self._names[index]]

    def picture(self, index: int) -> Image.Image:
        """One picture, upright, RGB."""
        return read_picture(self._list[index])
