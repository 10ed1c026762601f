"""Writes predictions as they come, a file for each sample."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.errors import InputError
from lit_insert.images import save_image, to_pil


class PredictionWriter(BasePredictionWriter):
    """Writes what ``predict_step`` returns: a mapping with ``id`` and, for each sample, pictures and values.

    ``image`` becomes ``<id>.png``, another picture ``<id>.<key>.png``; numbers and texts go into ``<id>.json``.
    Under several ranks each writes its own samples.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__("batch")
        self.folder = Path(folder)

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch."""
        if not isinstance(prediction, Mapping) or "id" not in prediction:
            raise InputError(f"{type(pl_module).__name__}.predict_step must return a mapping with 'id'")
        for i, name in enumerate(prediction["id"]):
            values: dict[str, Any] = {}
            for key, column in prediction.items():
                value = column[i]
                if isinstance(value, Tensor) and value.ndim == 3:
                    value = to_pil(value)
                if isinstance(value, Image.Image):
                    suffix = "" if key == "image" else f".{key}"
                    save_image(value, self.folder / f"{file_name(str(name))}{suffix}.png")
                elif key != "id":
                    values[key] = value.tolist() if isinstance(value, Tensor) else value
            if values:
                with atomic_file(self.folder / f"{file_name(str(name))}.json") as file:
                    file.write_text(json.dumps({"id": str(name), **values}) + "\n", encoding="utf-8")


def file_name(identity: str) -> str:
    """A file name for a sample id, different for different ids: what is unsafe gives way to a digest."""
    safe = re.sub(r"[^\w.-]+", "_", identity).lstrip(".")[:120]
    if safe == identity:
        return safe
    return f"{safe}-{hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()}"
