"""Pictures and masks as files: ``images/`` and ``masks/`` paired by name, or ``mask_<name>`` beside each picture."""

import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from lit_insert.data.decode import read_picture
from lit_insert.data.folder import SPLITS, Inside
from lit_insert.data.loading import BrokenSample
from lit_insert.data.mask_check import MaskReport
from lit_insert.data.mask_source import IGNORE, MaskedPicture, MaskSource
from lit_insert.data.parquet_join import unit_hash
from lit_insert.errors import InputError
from lit_insert.images import images_by_stem, list_images, load_image

_PREFIX = "mask_"
_SHAPE = 0.03  # how much the aspects of a picture and its mask may differ


def read_mask(path: Path, ignore_value: int | None = None) -> np.ndarray:
    """Read a mask file of any kind.

    Where the file has an alpha channel that varies, alpha is the mask; else its grey value (colours are turned into
    grey, 16 bits scaled to 8). If no value is above 1 the file counts in 0..1 and 1 is the object. Otherwise it
    counts in 0..255, and the object is what reaches half of that (128): so the ringing of a JPEG mask is dropped.

    Args:
        path: The file.
        ignore_value: Grey value of pixels that are neither; only for lossless files.

    Returns:
        uint8 (H,W), upright: 1 object, 0 background, 255 ignored.

    Raises:
        BrokenSample: If it is missing, empty, truncated or no picture.
    """
    try:
        image = load_image(path, mode="RGBA")
    except InputError as error:
        raise BrokenSample(str(path), str(error).removeprefix(f"{path}: ")) from error
    low, high = image.getchannel("A").getextrema()
    grey = image.getchannel("A") if low != high else image.convert("RGB").convert("L")
    values = np.asarray(grey)
    mask = (values >= (128 if values.max(initial=0) > 1 else 1)).astype(np.uint8)
    if ignore_value is not None:
        mask[values == ignore_value] = IGNORE
    return mask


def fitted(mask: np.ndarray, image: Image.Image, name: Path) -> np.ndarray:
    """A mask in the size of its picture, without smoothing.

    Args:
        mask: uint8 (h,w), of nearly the picture's shape.
        image: The picture, upright.
        name: The mask's file, for messages.

    Raises:
        BrokenSample: If the aspects differ by more than 3 %.
    """
    height, width = mask.shape
    if abs(math.log(width * image.height / (height * image.width))) > _SHAPE:
        reason = f"the mask is {width}x{height}, its upright picture {image.width}x{image.height}: another shape"
        raise BrokenSample(str(name), reason)
    if (width, height) == image.size:
        return mask
    return np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))


def both_by_stem(images: Path, masks: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Pictures and masks of two folders by name without suffix; ``mask_`` in front of a mask's name may be there.

    Raises:
        InputError: If a folder is missing or empty, or a name comes twice.
    """
    pictures = images_by_stem(images)
    covers: dict[str, Path] = {}
    for stem, path in images_by_stem(masks).items():
        name = stem if stem in pictures else stem.removeprefix(_PREFIX)
        if name in covers:
            raise InputError(f"{path}: {covers[name].name} is a mask of {name} too; keep one of them")
        covers[name] = path
    return pictures, covers


def pair(folder: Path, images: str = "images", masks: str = "masks") -> dict[str, tuple[Path, Path]]:
    """The pictures of a folder with their masks, by name without suffix, sorted.

    Where there is no subfolder ``images``, the folder itself holds pictures, and for each a mask whose name is that
    of the picture with ``mask_`` in front; the suffixes may differ. The prefix is understood in ``masks`` too.

    Args:
        folder: The folder.
        images: Name of the subfolder of pictures.
        masks: Name of the subfolder of masks.

    Raises:
        InputError: If a folder is missing or empty, a picture lacks its mask or a mask its picture, two files have
            the same name, or a file is a link that leads out of the folder.
    """
    if (folder / images).is_dir():
        if not (folder / masks).is_dir():
            raise InputError(f"{folder}: there is {images}/ but no {masks}/; add the masks, or name their folder")
        pictures, covers = both_by_stem(folder / images, folder / masks)
    else:
        pictures, covers = {}, {}
        for path in list_images(folder):
            stem, which = path.stem, pictures
            if stem.startswith(_PREFIX):
                stem, which = stem.removeprefix(_PREFIX), covers
            if stem in which:
                raise InputError(f"{path}: {which[stem].name} has the same name; keep one of them")
            which[stem] = path
        if not covers:
            raise InputError(f"{folder}: neither a folder {images}/ nor files named {_PREFIX}<picture> in it")
    bare, spare = sorted(pictures.keys() - covers.keys()), sorted(covers.keys() - pictures.keys())
    if bare or spare:
        parts = [
            f"{len(names)} {what} ({_few(names)})"
            for names, what in ((bare, "pictures without a mask"), (spare, "masks without a picture"))
            if names
        ]
        raise InputError(f"{folder}: {' and '.join(parts)}; add what is missing or remove the rest")
    for found in (pictures, covers):
        inside = Inside(next(iter(found.values())).parent)
        for path in found.values():
            inside(path.name, str(folder))
    return {stem: (pictures[stem], covers[stem]) for stem in sorted(pictures)}


def split_of(names: list[str], val_count: int, test_count: int) -> dict[str, list[str]]:
    """Divide names by a hash of each: the ``val_count`` smallest are "val", the next ``test_count`` "test".

    It depends on the names only, so every machine and every run divides a folder in the same way.
    """
    order = sorted(names, key=lambda name: (unit_hash(name), name))
    cut = val_count + test_count
    parts = {"val": order[:val_count], "test": order[val_count:cut], "train": order[cut:], "all": order}
    return {split: sorted(part) for split, part in parts.items()}


class MaskFolder(MaskSource):
    """Pictures with one mask each, from files.

    A folder has either ``images/`` and ``masks/`` with files of the same names (suffixes may differ), or
    ``mask_<picture>`` beside each picture, or subfolders ``train/``, ``val/``, ``test/`` of which each has one of
    these. Without such subfolders, ``val_count`` and ``test_count`` pictures are set aside by a hash of their names
    (`split_of`). Give the same counts wherever you name the folder. Subfolders for splits win over counts.

    A mask may have another size than its picture but not another shape; it is resized to the picture, upright as its
    EXIF data says, without smoothing. How mask files are understood: `read_mask`.

    Args:
        folder: The folder.
        split: "train", "val", "test", or "all" of it.
        images: Name of the subfolder of pictures.
        masks: Name of the subfolder of masks.
        val_count: Pictures set aside for "val", where the folder has no subfolders for splits.
        test_count: Pictures set aside for "test", likewise.
        invert: The masks are white where the object is not.
        ignore_value: Grey value (0..255) in masks of pixels that count neither way; lossless files only.

    Raises:
        InputError: If files do not pair up, or a split has no pictures.
    """

    def __init__(
        self,
        folder: str,
        split: Literal["train", "val", "test", "all"] = "train",
        images: str = "images",
        masks: str = "masks",
        val_count: int = 0,
        test_count: int = 0,
        invert: bool = False,
        ignore_value: int | None = None,
    ) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise InputError(f"{folder}: no such folder")
        if min(val_count, test_count) < 0:
            raise InputError("val_count and test_count must be 0 or more")
        self.title, self.invert, self.ignore_value = f"{folder} ({split})", invert, ignore_value
        own = [s for s in SPLITS if (root / s).is_dir()]
        if own:
            if split != "all" and split not in own:
                raise InputError(f"{folder}: no folder {split}/ there, only {', '.join(own)}; or use another split")
            chosen = own if split == "all" else [split]
            pairs = {f"{s}/{k}": v for s in chosen for k, v in pair(root / s, images, masks).items()}
            self.files = list(pairs.items())
        else:
            pairs = pair(root, images, masks)
            if val_count + test_count >= len(pairs):
                raise InputError(
                    f"{folder}: {len(pairs)} pictures are too few for val_count {val_count} and test_count {test_count}"
                )
            names = split_of(list(pairs), val_count, test_count)[split]
            if not names:
                raise InputError(f"{folder}: nothing is set aside for {split}; give {split}_count or a folder {split}/")
            self.files = [(name, pairs[name]) for name in names]

    def __len__(self) -> int:
        return len(self.files)

    def origins(self) -> set[str]:
        """The picture files."""
        return {str(picture.absolute()) for _, (picture, _) in self.files}

    def mask(self, index: int) -> np.ndarray:
        """The mask as stored, uint8 (H,W): 1 object, 0 background, 255 ignored.

        Raises:
            BrokenSample: If it cannot be read.
        """
        mask = read_mask(self.files[index][1][1], self.ignore_value)
        return np.where(mask == IGNORE, mask, 1 - mask) if self.invert else mask

    def picture(self, index: int) -> MaskedPicture:
        """One picture with its mask in the picture's size.

        Raises:
            BrokenSample: If a file cannot be read, or the two differ in shape.
        """
        name, (path, cover) = self.files[index]
        image, mask = read_picture(path), self.mask(index)
        mask = fitted(mask, image, cover)
        return MaskedPicture(F.pil_to_tensor(image), torch.from_numpy(mask.copy()), name)

    def check(self, limit: int) -> MaskReport:
        """Look at up to ``limit`` masks, evenly spaced over the set.

        Raises:
            InputError: If all of them are empty.
        """
        report = MaskReport(self.title)
        count = min(limit, len(self))
        for at in range(count):
            index = at * len(self) // count
            try:
                report.add(self.files[index][0], self.mask(index))
            except BrokenSample as error:
                report.fail(self.files[index][0], error.reason)
        if report.all_empty:
            raise InputError(f"{self.title}: all {len(report.empty)} masks are empty; is 1 or 255 the object in them?")
        return report


def _few(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (" …" if len(names) > limit else "")
