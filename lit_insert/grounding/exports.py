"""The result in other tools' layouts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.errors import InputError
from lit_insert.grounding.output import vectors_of
from lit_insert.grounding.result import SegmentResult
from lit_insert.images import save_image
from lit_insert.rle import decode_rle


def write_exports(record: Mapping[str, Any], names: list[str], folder: Path) -> list[Path]:
    """Write further files of a record; returns them.

    Args:
        record: As `lit_insert.grounding.output.as_record` makes.
        names: Of coco-results (a list of results for COCOeval), label-map (one PNG a picture, a pixel's value is the
            category, 0 for none) and yolo-seg (one text file a picture, a line for each outline, and classes.txt).
        folder: Where to.

    Raises:
        InputError: If a name is unknown, or there are more categories than a label map holds.
    """
    written: list[Path] = []
    for name in names:
        if name not in _EXPORTERS:
            raise InputError(f"output.exports has {name!r}; it knows {', '.join(_EXPORTERS)}")
        written += _EXPORTERS[name](record, folder)
    return written


def picture_names(record: Mapping[str, Any]) -> dict[int, str]:
    """A name for each picture's files by its id; pictures of one name may come from several folders."""
    names: dict[int, str] = {}
    for image in record["images"]:
        stem = Path(image["file_name"]).stem
        taken = stem in names.values()
        names[image["id"]] = f"{stem}-{image['id']}" if taken else stem
    return names


def _coco_results(record: Mapping[str, Any], folder: Path) -> list[Path]:
    keys = ("image_id", "category_id", "bbox", "segmentation", "score")
    results = [{key: a[key] for key in keys} for a in record["annotations"]]
    return [_write_text(json.dumps(results, indent=1) + "\n", folder / "coco_results.json")]


def _label_maps(record: Mapping[str, Any], folder: Path) -> list[Path]:
    if len(record["categories"]) > 255:
        raise InputError(f"label-map: {len(record['categories'])} categories; a map of 8 bits holds 255")
    written = []
    for image in _done(record):
        labels = np.zeros((image["height"], image["width"]), np.uint8)
        # The small lie on the large, so that every thing is seen.
        for a in sorted(_of(record, image), key=lambda a: (-a["area"], a["id"])):
            labels[_mask(a)] = a["category_id"]
        path = folder / "label_map" / f"{picture_names(record)[image['id']]}.png"
        written.append(save_image(Image.fromarray(labels), path))
    return written


def _yolo(record: Mapping[str, Any], folder: Path) -> list[Path]:
    names = "".join(f"{c['name']}\n" for c in record["categories"])
    written = [_write_text(names, folder / "yolo_seg" / "classes.txt")]
    for image in _done(record):
        size = np.array([image["width"], image["height"]], np.float64)
        lines = []
        for a in _of(record, image):
            contours, _ = cv2.findContours(_mask(a).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            for contour in contours:
                if len(contour) >= 3:
                    points = (contour[:, 0] + 0.5) / size
                    lines.append(" ".join([str(a["category_id"] - 1), *(f"{v:.6f}" for v in points.flatten())]))
        path = folder / "yolo_seg" / f"{picture_names(record)[image['id']]}.txt"
        written.append(_write_text("".join(f"{line}\n" for line in lines), path))
    return written


_EXPORTERS = {"coco-results": _coco_results, "label-map": _label_maps, "yolo-seg": _yolo}


def write_legacy(record: Mapping[str, Any], result: SegmentResult, path: Path, threshold: float) -> list[Path]:
    """Write the layout of the program that came before, and its vectors as ``<name>_embeddings.json``.

    Its boxes are whole pixels, left, top, right, bottom; a generated object names its most similar contextual one,
    matched or not; without any the score is -1.
    """
    names = {c["id"]: c["name"] for c in record["categories"]}
    images = {image["id"]: image for image in record["images"]}
    vectors = vectors_of(result)
    ids: dict[int, str] = {}
    counts: dict[tuple[int, str], int] = {}
    for a in record["annotations"]:
        key = (a["image_id"], names[a["category_id"]])
        counts[key] = counts.get(key, -1) + 1
        ids[a["id"]] = f"{key[1]}_{counts[key]}"

    def tree(vector: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {"context": [], "generated": []}
        for image in record["images"]:
            objects = []
            for a in _of(record, image):
                x, y, width, height = a["bbox"]
                entry: dict[str, Any] = {"object_id": ids[a["id"]], "label": names[a["category_id"]]}
                if vector:
                    own = vectors.get(str(a["id"]))
                    entry["dino_embedding"] = None if own is None else own.tolist()
                else:
                    entry |= {"bbox": [x, y, x + width, y + height], "mask": a["segmentation"], "score": a["score"]}
                objects.append(entry)
            size = {"width": image["width"], "height": image["height"]}
            found[image["role"]].append({"path": image["file_name"], "image_dimensions": size, "objects": objects})
        return found["context"], found["generated"]

    by_id = {a["id"]: a for a in record["annotations"]}
    pairings = []
    for p in record["pairings"]:
        best = by_id.get(p["context_id"] or p["best_context_id"])
        score = p["similarity"] if p["accepted"] else p["best_similarity"]
        pairings.append(
            {
                "generated_object_id": ids[p["generated_id"]],
                "generated_label": names[by_id[p["generated_id"]]["category_id"]],
                "best_contextual_object_id": ids[best["id"]] if best else None,
                "best_contextual_label": names[best["category_id"]] if best else None,
                "source_image": images[best["image_id"]]["file_name"] if best else None,
                "cosine_similarity": -1 if score is None else score,
                "threshold": threshold,
                "paired": p["accepted"],
            }
        )
    context, generated = tree(vector=False)
    whole: dict[str, Any] = {
        "text_prompt": record["prompt"],
        "detected_entities": [e["text"] for e in record["entities"]],
        "contextual_images": context,
        "generated_image": generated[0] if len(generated) == 1 else generated,
        "box_format": "xyxy",
        "coordinate_unit": "pixels",
        "object_pairings": pairings,
    }
    context, generated = tree(vector=True)
    beside = {"contextual_images": context, "generated_image": generated[0] if len(generated) == 1 else generated}
    return [
        _write_text(json.dumps(whole, indent=2) + "\n", path),
        _write_text(json.dumps(beside, indent=2) + "\n", path.with_name(f"{path.stem}_embeddings.json")),
    ]


def _done(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [image for image in record["images"] if image["status"] in ("ok", "segmented")]


def _of(record: Mapping[str, Any], image: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [a for a in record["annotations"] if a["image_id"] == image["id"]]


def _mask(annotation: Mapping[str, Any]) -> np.ndarray:
    return decode_rle(annotation["segmentation"]["counts"], annotation["segmentation"]["size"])


def _write_text(text: str, path: Path) -> Path:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
