"""The card of a data set of triplets."""

from pathlib import Path

import yaml

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.data.check import Check
from lit_insert.data.folder import metadata_file

_HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def dataset_card(check: Check, name: str, licence: str, source: str = "") -> str:
    """The text of ``README.md``: front matter that the hub's viewer understands, format, counts, how to read it.

    Args:
        check: A check of the folder, without faults.
        name: ``owner/name``.
        licence: Hub licence id of the pictures.
        source: Where the pictures come from.
    """
    total = sum(split.count for split in check.splits)
    size = next((label for limit, label in _SIZES if total < limit), "n>1M")
    front = {
        "license": licence,
        "task_categories": ["image-to-image"],
        "tags": ["lit-insert", "object-insertion", "inpainting"],
        "size_categories": [size],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": _HUB_SPLITS[split.name], "path": f"{split.name}/**"} for split in check.splits
                ],
            }
        ],
    }
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {name}",
        "",
        "Triplets for inserting an object into a scene: the scene without the object, a picture of the object, the "
        "scene with it, and a mask of where it is.",
        "",
        *([source, ""] if source else []),
        "| split | triplets | pictures |",
        "|---|---|---|",
        *(f"| {split.name} | {split.count} | {len(split.pictures)} |" for split in check.splits),
        "",
        "No picture is in two splits. Columns of `metadata.csv`: `triplet_id`, `img_id`, `ann_id`, `source_dataset`, "
        "`original_image`, `target_image`, `object_image`, `mask`, `x0` `y0` `x1` `y1` (half-open box of the object "
        "in the target, pixels), `area_frac`, `instruction`.",
        "",
        "```python",
        "from datasets import load_dataset",
        f'rows = load_dataset("{name}", split="train")',
        "",
        "from lit_insert import PipeTripletDataModule",
        f'data = PipeTripletDataModule("{name}", batch_size=16, size=256)',
        "```",
        "",
    ]
    return "\n".join(lines)


_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write_dataset_card(folder: Path, card: str) -> Path:
    """Write the card beside the splits; returns its path.

    Raises:
        FileNotFoundError: If ``folder`` is no folder of triplets.
    """
    if not any(metadata_file(folder / split) for split in _HUB_SPLITS):
        raise FileNotFoundError(f"{folder}: no metadata there")
    with atomic_file(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    return folder / "README.md"
