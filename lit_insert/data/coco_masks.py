"""Masks from a COCO instances file: polygons and run lengths, crowds, pictures without the class."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from lit_insert.data.decode import read_picture
from lit_insert.data.folder import Inside
from lit_insert.data.loading import BrokenSample
from lit_insert.data.mask_source import IGNORE, MaskedPicture, MaskSource
from lit_insert.data.parquet_join import unit_hash
from lit_insert.errors import InputError
from lit_insert.rle import decode_rle


def polygon_mask(polygons: Sequence[Any], height: int, width: int) -> np.ndarray:
    """The union of polygons: a pixel is set if its centre is inside.

    Each is filled by the even-odd rule: an edge that crosses a row toggles all pixels to its right.

    Args:
        polygons: Flat lists of x, y, x, y … in pixels, the top left corner of the picture being (0, 0).
        height: Of the mask.
        width: Of the mask.

    Returns:
        uint8 (height, width) in {0,1}.

    Raises:
        InputError: If a polygon has fewer than three points, an odd number of values or a value that is no number.
    """
    mask = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        try:
            points = np.asarray(polygon, np.float64).reshape(-1, 2)
        except (TypeError, ValueError) as error:
            raise InputError("a polygon must be a flat list of numbers x, y, x, y …") from error
        if len(points) < 3 or not np.isfinite(points).all():
            raise InputError("a polygon needs three points or more, all of them finite")
        toggles = np.zeros((height, width + 1), np.uint8)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
            first, stop = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in sorted((y0, y1)))
            rows = np.arange(first, stop)
            x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0)) if stop > first else rows
            toggles[rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)] ^= 1
        mask |= np.bitwise_xor.accumulate(toggles[:, :width], axis=1)
    return mask


def annotation_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The mask of one annotation, uint8 (height, width) in {0,1}.

    Args:
        segmentation: Polygons, or run lengths as numbers or packed into a string.
        height: Of the picture as the file says.
        width: Of the picture as the file says.

    Raises:
        InputError: If it is neither, or run lengths of another size.
    """
    if isinstance(segmentation, list):
        return polygon_mask(segmentation, height, width)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise InputError("a segmentation must be polygons, or run lengths with size and counts")
    if list(segmentation["size"]) != [height, width]:
        raise InputError(f"run lengths of size {segmentation['size']} for a picture of {[height, width]}")
    return decode_rle(segmentation["counts"], (height, width)).astype(np.uint8)


@dataclass
class CocoPicture:
    """What a COCO file says of one picture, as far as the chosen categories go.

    Attributes:
        id: Of the picture.
        name: File name.
        height: Pixels.
        width: Pixels.
        objects: Segmentations of single objects.
        crowds: Segmentations of crowds.
        area: Sum of the objects' areas as annotated, as a part of the picture.
    """

    id: int | str
    name: str
    height: int
    width: int
    objects: list[Any] = field(default_factory=list)
    crowds: list[Any] = field(default_factory=list)
    area: float = 0.0

    def mask(self) -> np.ndarray:
        """The union of the objects, uint8 (H,W): 1 object, 0 background, 255 crowd.

        Raises:
            InputError: If a segmentation is wrong.
        """
        mask = np.zeros((self.height, self.width), np.uint8)
        for crowd in self.crowds:
            mask[annotation_mask(crowd, self.height, self.width) == 1] = IGNORE
        for one in self.objects:
            mask[annotation_mask(one, self.height, self.width) == 1] = 1
        return mask


def read_coco(path: Path, categories: Sequence[str] = ("person",)) -> list[CocoPicture]:
    """The pictures of a COCO instances file in order of their ids, each with its objects of some categories.

    Raises:
        InputError: If the file is missing, no JSON or no instances file, or lacks a category.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with path.open(encoding="utf-8") as file:
            data = json.load(file)
        known = {str(c["name"]): c["id"] for c in data["categories"]}
        missing = [c for c in categories if c not in known]
        if missing or not categories:
            some = ", ".join(sorted(known)[:12]) + (" …" if len(known) > 12 else "")
            raise InputError(f"{path}: no category {', '.join(missing)}; there are {some}")
        wanted = {known[c] for c in categories}
        pictures = {
            i["id"]: CocoPicture(i["id"], str(i["file_name"]), int(i["height"]), int(i["width"]))
            for i in data["images"]
        }
        for entry in data["annotations"]:
            if entry["category_id"] not in wanted:
                continue
            picture = pictures.get(entry["image_id"])
            if picture is None:
                raise InputError(f"{path}: annotation {entry.get('id')} is of image {entry['image_id']}, not listed")
            if entry.get("iscrowd"):
                picture.crowds.append(_compact(entry["segmentation"]))
            else:
                picture.objects.append(_compact(entry["segmentation"]))
                area = entry.get("area")
                if area is None:
                    area = int(annotation_mask(entry["segmentation"], picture.height, picture.width).sum())
                picture.area += float(area) / max(1, picture.height * picture.width)
    except InputError:
        raise
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is no JSON: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: is no COCO instances file ({type(error).__name__}: {error})") from error
    return [pictures[key] for key in sorted(pictures, key=str if _mixed(pictures) else None)]


def _mixed(keys: Any) -> bool:
    return len({type(k) for k in keys}) > 1


def _compact(segmentation: Any) -> Any:
    """Polygons as arrays, a fifth of the memory of lists of numbers."""
    if isinstance(segmentation, list):
        return [np.asarray(p, np.float32) for p in segmentation]
    return segmentation


@dataclass(frozen=True)
class CocoRules:
    """Which pictures of a COCO file are used.

    Args:
        crowd: What becomes of pictures with a crowd: "ignore" leaves its pixels out, "exclude" leaves the picture out.
        min_area: Smallest part of a picture that its objects must cover together.
        max_area: Largest part.
        min_count: Fewest objects, not counting crowds.
        max_count: Most objects; null for any number.
        negatives: Part of the pictures without any object that is used too, with an empty mask; 0 to 1. Which ones
            is a hash of their names.
    """

    crowd: Literal["ignore", "exclude"] = "ignore"
    min_area: float = 0.0
    max_area: float = 1.0
    min_count: int = 1
    max_count: int | None = None
    negatives: float = 0.0

    def __post_init__(self) -> None:
        if self.crowd not in ("ignore", "exclude"):
            raise InputError(f"crowd is {self.crowd!r}; give ignore or exclude")
        if not 0 <= self.min_area <= self.max_area:
            raise InputError(f"min_area {self.min_area} and max_area {self.max_area}: give parts of the picture")
        if not 0 <= self.negatives <= 1:
            raise InputError(f"negatives is {self.negatives}; give a part from 0 to 1")

    def refuses(self, picture: CocoPicture) -> str:
        """Why a picture is not used; empty if it is."""
        if picture.crowds and (self.crowd == "exclude" or not picture.objects):
            return "a crowd"
        if not picture.objects:
            return "" if unit_hash("negative", picture.name) < self.negatives else "no object"
        if len(picture.objects) < self.min_count:
            return "too few objects"
        if self.max_count is not None and len(picture.objects) > self.max_count:
            return "too many objects"
        if picture.area < self.min_area:
            return "objects too small"
        return "objects too large" if picture.area > self.max_area else ""


class CocoMasks(MaskSource):
    """Pictures of a COCO instances file, each with the union of its objects of some categories.

    Args:
        annotations: The file, such as ``annotations/instances_val2017.json``.
        images: Folder of the pictures.
        categories: Names of the categories that count as the object.
        crowd: What becomes of pictures with a crowd: "ignore" leaves its pixels out of losses and metrics, "exclude"
            leaves the picture out. A picture of a crowd and no single object is always left out.
        min_area: Smallest part of a picture that its objects must cover together.
        max_area: Largest part.
        max_count: Most objects in a picture; null for any number.
        negatives: Part of the pictures without any object that is used too, with an empty mask, 0 to 1.
        limit: Use only so many pictures.

    Raises:
        InputError: If the file is missing or no COCO instances file, or no picture is left.
    """

    def __init__(
        self,
        annotations: str,
        images: str,
        categories: Sequence[str] = ("person",),
        crowd: Literal["ignore", "exclude"] = "ignore",
        min_area: float = 0.0,
        max_area: float = 1.0,
        max_count: int | None = None,
        negatives: float = 0.0,
        limit: int | None = None,
    ) -> None:
        if not Path(images).is_dir():
            raise InputError(f"{images}: no such folder")
        rules = CocoRules(crowd, min_area, max_area, 1, max_count, negatives)
        pictures = [p for p in read_coco(Path(annotations), categories) if not rules.refuses(p)][:limit]
        if not pictures:
            raise InputError(f"{annotations}: no picture of {', '.join(categories)} is left by the rules; loosen them")
        self.annotations, self.pictures, self._inside = annotations, pictures, Inside(Path(images))

    def __len__(self) -> int:
        return len(self.pictures)

    def origins(self) -> set[str]:
        """The picture files."""
        return {str(self._path(p).absolute()) for p in self.pictures}

    def _path(self, picture: CocoPicture) -> Path:
        return self._inside(picture.name, self.annotations)

    def picture(self, index: int) -> MaskedPicture:
        """One picture with its mask.

        The mask is in the frame of the stored pixels; COCO's pictures need no turning.

        Raises:
            BrokenSample: If the picture cannot be read or has another size than the file says, or its
                annotations are wrong.
        """
        entry = self.pictures[index]
        path = self._path(entry)
        image = read_picture(path)
        if image.size != (entry.width, entry.height):
            reason = f"is {image.width}x{image.height}, annotated as {entry.width}x{entry.height}"
            raise BrokenSample(str(path), reason)
        try:
            mask = entry.mask()
        except InputError as error:
            raise BrokenSample(str(path), str(error)) from error
        return MaskedPicture(F.pil_to_tensor(image), torch.from_numpy(mask), Path(entry.name).stem)
