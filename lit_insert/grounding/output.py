"""A result as files: a COCO-style JSON with vectors beside it, and back again."""

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_insert import __version__
from lit_insert.artifacts.atomic import atomic_file
from lit_insert.artifacts.weights import check_safetensors
from lit_insert.errors import InputError
from lit_insert.grounding.entities import Entity
from lit_insert.grounding.result import PictureResult, Query, SegmentResult, Thing
from lit_insert.grounding.settings import GroundingSettings
from lit_insert.segmenters.base import Instance

SCHEMA, VERSION = "lit-insert/grounding", 1
_DECIDE = ("entities", "segmenter", "nms", "verify", "embedder")  # sections on which what was found depends


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the file."""
    loaded: dict[str, Any] = json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8"))
    return loaded


def as_record(result: SegmentResult, settings: GroundingSettings, folder: Path) -> dict[str, Any]:
    """A result as plain data: a COCO dataset with further keys, which COCO's tools pass over.

    Args:
        result: What was found.
        settings: With which settings.
        folder: Where the file will be; names of pictures are relative to it.
    """
    categories = {e.text: i for i, e in enumerate(result.entities, 1)}
    values = settings.as_dict()
    record: dict[str, Any] = {
        "info": {
            "schema": SCHEMA,
            "schema_version": VERSION,
            "package_version": __version__,
            "models": result.models,
            "thresholds": {
                "score": settings.segmenter.threshold,
                "mask": settings.segmenter.mask_threshold,
                "pairing": settings.pairing.threshold,
            },
            "settings": {name: values[name] for name in (*_DECIDE, "pairing")},
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
        "prompt": result.prompt,
        "entities": [{"text": e.text, "source": e.source} for e in result.entities],
        "warnings": list(result.warnings),
        "images": [],
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "annotations": [],
        "queries": [],
        "pairings": [],
        "embeddings": None,
    }
    number = 0
    for image_id, picture in enumerate(result.pictures, 1):
        record["images"].append(_image(picture, image_id, folder))
        for query in picture.queries:
            record["queries"].append(_query(query, image_id, categories[query.label]))
        counts: dict[str, int] = {}
        for thing in picture.things:
            number += 1
            counts[thing.label] = counts.get(thing.label, 0) + 1
            uid = f"{picture.role}-{image_id}/{thing.label}/{counts[thing.label]}"
            record["annotations"].append(_annotation(thing, number, image_id, categories[thing.label], uid))
    _add_pairings(record, result, settings)
    return record


def _image(picture: PictureResult, number: int, folder: Path) -> dict[str, Any]:
    height, width = picture.size
    return {
        "id": number,
        "file_name": Path(os.path.relpath(picture.path, folder)).as_posix(),
        "width": width,
        "height": height,
        "role": picture.role,
        "sha256": picture.sha256,
        "status": picture.status,
        "error": picture.error,
    }


def _query(query: Query, image_id: int, category: int) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "category_id": category,
        "presence": round(query.presence, 6),
        "n_found": query.n_found,
        "n_kept": query.n_kept,
        "status": query.status,
        "error": query.error,
    }


def _annotation(thing: Thing, number: int, image_id: int, category: int, uid: str) -> dict[str, Any]:
    own = thing.instance
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "bbox": list(own.box),
        "area": own.area,
        "iscrowd": 0,
        "segmentation": own.rle,
        "score": round(own.score, 6),
        "model_box": [round(v, 3) for v in own.model_box],
        "uid": uid,
        "verified": thing.verified,
    }


def _add_pairings(record: dict[str, Any], result: SegmentResult, settings: GroundingSettings) -> None:
    ids: dict[str, list[int]] = {"context": [], "generated": []}
    roles = {image["id"]: image["role"] for image in record["images"]}
    for annotation in record["annotations"]:
        ids[roles[annotation["image_id"]]].append(annotation["id"])
    method = f"{settings.embedder.backend}, cosine, one-to-one, labels {settings.pairing.labels}"
    for number, match in zip(ids["generated"], result.matches, strict=False):
        record["pairings"].append(
            {
                "generated_id": number,
                "context_id": None if match.context is None else ids["context"][match.context],
                "similarity": None if match.similarity is None else round(match.similarity, 6),
                "method": method,
                "accepted": match.context is not None,
                "best_context_id": None if match.best is None else ids["context"][match.best],
                "best_similarity": None if match.best_similarity is None else round(match.best_similarity, 6),
            }
        )


def vectors_of(result: SegmentResult) -> dict[str, Tensor]:
    """Vectors by annotation id, in the order of `as_record`."""
    things = [thing for picture in result.pictures for thing in picture.things]
    # Copies: rows of one tensor share its memory, which safetensors refuses.
    return {str(i): t.vector.clone() for i, t in enumerate(things, 1) if t.vector is not None}


def save_result(result: SegmentResult, settings: GroundingSettings, path: Path) -> dict[str, Any]:
    """Write the JSON, and the vectors beside it as ``.safetensors``; returns what the JSON holds."""
    record = as_record(result, settings, path.parent)
    vectors = vectors_of(result)
    if vectors:
        beside = path.with_suffix(".safetensors")
        record["embeddings"] = beside.name
        with atomic_file(beside) as temporary:
            save_file(vectors, temporary)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return record


def load_result(path: str | Path) -> tuple[SegmentResult, dict[str, Any]]:
    """Read what `save_result` wrote.

    Returns:
        The result, its matches left out, and the whole record.

    Raises:
        InputError: If the file is missing, or not of this kind.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["info"]["schema"] != SCHEMA or record["info"]["schema_version"] != VERSION:
            raise InputError(f"{path}: written by another version; run it again without --resume")
        return _result(record, path), record
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a result of this command ({type(error).__name__}: {error})") from error


def _result(record: Mapping[str, Any], path: Path) -> SegmentResult:
    vectors: dict[str, Tensor] = {}
    if record["embeddings"]:
        beside = path.parent / record["embeddings"]
        check_safetensors(beside)
        vectors = load_file(beside)
    names = {c["id"]: c["name"] for c in record["categories"]}
    pictures = {
        i["id"]: PictureResult(
            Path(os.path.normpath(path.parent / i["file_name"])),
            i["role"],
            (i["height"], i["width"]),
            i["sha256"],
            i["status"],
            i["error"],
        )
        for i in record["images"]
    }
    for q in record["queries"]:
        query = Query(names[q["category_id"]], q["presence"], q["status"], q["n_found"], q["n_kept"], q["error"])
        pictures[q["image_id"]].queries.append(query)
    for a in record["annotations"]:
        x, y, width, height = a["bbox"]
        left, top, right, bottom = a["model_box"]
        instance = Instance(
            dict(a["segmentation"]), a["score"], (x, y, width, height), a["area"], (left, top, right, bottom)
        )
        thing = Thing(names[a["category_id"]], instance, vectors.get(str(a["id"])), a["verified"])
        pictures[a["image_id"]].things.append(thing)
    return SegmentResult(
        prompt=record["prompt"],
        entities=[Entity(e["text"], e["source"]) for e in record["entities"]],
        pictures=list(pictures.values()),
        models=dict(record["info"]["models"]),
    )


def same_settings(record: Mapping[str, Any], settings: GroundingSettings) -> list[str]:
    """Keys on which what was found depends, and that differ from those of a record."""
    now, then = settings.as_dict(), record["info"]["settings"]
    return [f"{part}.{key}" for part in _DECIDE for key in now[part] if now[part][key] != then.get(part, {}).get(key)]
