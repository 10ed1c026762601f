"""Miniature data sets, written where a test asks for them."""

import csv
import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw


def jpeg(image, quality=90):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def scene(number, size=64, box=None, shape=None):
    """(source, target, mask): a striped backdrop, with an ellipse whose grey value tells the number."""
    width, height = shape or (size, size)
    y, x = np.mgrid[:height, :width]
    back = np.stack([(x * 2) % 256, (y * 2) % 256, (x + y + number) % 256], -1).astype(np.uint8)
    source = Image.fromarray(back)
    box = box or (10 + number % 20, 12, 40 + number % 20, 50)
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).ellipse((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    target = source.copy()
    target.paste((number % 256, 255 - number % 256, 60), mask=mask)
    return source, target, mask


def write_pipe(root, rows=40, split="train", files=2, group=7, per_image=3, mask_order=None, box=None, size=64):
    """PIPE and PIPE_Masks with several annotations per picture; returns the keys in PIPE's order."""
    keys = [("COCO" if n % 2 else "LVIS", f"{n // per_image:07d}", str(n % per_image * 1000 + n)) for n in range(rows)]
    sources, targets, masks = [], [], []
    for n in range(rows):
        source, target, mask = scene(n, size, box)
        sources.append({"bytes": jpeg(source), "path": None})
        targets.append({"bytes": jpeg(target), "path": None})
        masks.append({"bytes": jpeg(mask), "path": None})
    columns = dict(zip(("target_img_dataset", "img_id", "ann_id"), map(list, zip(*keys, strict=True)), strict=True))
    table = pa.table(
        {
            "source_img": sources,
            "target_img": targets,
            "Instruction_VLM-LLM": [f"put in thing {n}" if n % 3 else "" for n in range(rows)],
            "Instruction_Class": [f"add a thing {n}" for n in range(rows)],
            "object_location": ["left"] * rows,
            **columns,
        }
    )
    order = np.arange(rows) if mask_order is None else np.asarray(mask_order)
    mask_table = pa.table({"mask": masks, **columns}).take(pa.array(order))
    for name, data, parts in (("PIPE", table, files), ("PIPE_Masks", mask_table, 1)):
        folder = root / name / "data"
        folder.mkdir(parents=True, exist_ok=True)
        edges = np.linspace(0, len(data), parts + 1).astype(int)
        for part, (start, stop) in enumerate(pairwise(edges.tolist())):
            path = folder / f"{split}-{part:05d}-of-{parts:05d}.parquet"
            pq.write_table(data.slice(start, stop - start), path, row_group_size=group)
    return keys


def write_triplets(root, split="train", count=12, size=64, shape=None, first=0):
    """A folder of triplets; the object is the ellipse's box."""
    folder = Path(root) / split
    rows = []
    for n in range(first, first + count):
        source, target, mask = scene(n, size, shape=shape)
        box = mask.getbbox()
        names = {}
        for kind, image in (
            ("original", source),
            ("target", target),
            ("object", target.crop(box)),
            ("mask", mask),
        ):
            path = folder / kind / f"toy-{n:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
            names[kind] = f"{kind}/{path.name}"
        rows.append(
            {
                "triplet_id": f"toy-{n:04d}",
                "img_id": f"{n:04d}",
                "ann_id": "0",
                "source_dataset": "toy",
                "original_image_file_name": names["original"],
                "target_image_file_name": names["target"],
                "object_image_file_name": names["object"],
                "mask_file_name": names["mask"],
                **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)),
                "area_frac": 0.2,
                "instruction": f"add number {n}",
            }
        )
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows
