"""Miniature pictures with masks, written where a test asks for them."""

import json

import numpy as np
import torch
from data_samples import scene
from PIL import Image

from lit_insert.data.mask_source import MaskedPicture


def told(height, width, box, name="x"):
    """A picture that is white where its mask is set and black elsewhere; ``box`` is half-open (y0, x0, y1, x1)."""
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[box[0] : box[2], box[1] : box[3]] = 1
    return MaskedPicture((mask * 255).expand(3, -1, -1).clone(), mask, name)


def write_pairs(root, count=12, first=0, mask_size=None, values=255, prefix=""):
    """``images/NNN.jpg`` and ``masks/NNN.png``: ellipses on stripes."""
    for n in range(first, first + count):
        _, target, mask = scene(n)
        if mask_size:
            mask = mask.resize(mask_size, Image.Resampling.NEAREST)
        for kind, image, name in (("images", target, f"{n:03d}.jpg"), ("masks", mask, f"{prefix}{n:03d}.png")):
            (root / kind).mkdir(parents=True, exist_ok=True)
            if kind == "masks":
                image = Image.fromarray((np.asarray(image) // 255 * values).astype(np.uint8))
            image.save(root / kind / name)
    return root


SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


def write_coco(root, annotations=None, images=6):
    """``all.json`` and ``pictures/N.png`` of 64x48: image 1 a square, 2 two of them, 3 one and a crowd, 4 a dog,
    5 nothing, 6 a crowd only."""
    pictures = root / "pictures"
    pictures.mkdir(parents=True)
    for n in range(1, images + 1):
        Image.new("RGB", (64, 48), (n * 20, 90, 60)).save(pictures / f"{n}.png")
    right = [[40, 10, 60, 10, 60, 20, 40, 20]]
    crowd = {"size": [48, 64], "counts": [0, 48 * 20, 48 * 44]}  # the first 20 columns

    def one(number, image, segmentation, category=1, iscrowd=0, area=400.0):
        return {"id": number, "image_id": image, "category_id": category, "iscrowd": iscrowd, "area": area} | {
            "segmentation": segmentation
        }

    if annotations is None:
        annotations = [
            one(1, 1, SQUARE),
            one(2, 2, SQUARE),
            one(3, 2, right, area=200.0),
            one(4, 3, SQUARE),
            one(5, 3, crowd, iscrowd=1),
            one(6, 4, SQUARE, category=18),
            one(7, 6, crowd, iscrowd=1),
        ]
    data = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 48, "width": 64} for n in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    }
    (root / "all.json").write_text(json.dumps(data))
    return str(root / "all.json"), str(pictures)
