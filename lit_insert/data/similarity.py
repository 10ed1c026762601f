"""How alike reference and target are for CLIP, over a folder of triplets."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from lit_insert import pocket
from lit_insert.data.check import look_at
from lit_insert.data.folder import Record
from lit_insert.data.transforms import clip_processor
from lit_insert.errors import InputError


class Clip:
    """Unit-length embeddings of pictures and, where the model has a text tower, of texts.

    Args:
        source: "pocket", a CLIPModel or CLIPVisionModelWithProjection folder, a diffusers folder with
            ``image_encoder``, or a hub id.

    Raises:
        InputError: If there is no such model.
    """

    def __init__(self, source: str) -> None:
        from transformers import AutoConfig, AutoTokenizer, CLIPModel, CLIPVisionModelWithProjection

        folder = pocket.path("insert") if source == "pocket" else Path(source)
        encoder = folder / "image_encoder" if (folder / "image_encoder").is_dir() else folder
        place = str(encoder) if encoder.is_dir() else source
        self.model: Any
        self.tokenizer: Any = None
        try:
            kind = AutoConfig.from_pretrained(place).model_type
            if kind == "clip":
                self.model = CLIPModel.from_pretrained(place).eval()
            elif kind == "clip_vision_model":
                self.model = CLIPVisionModelWithProjection.from_pretrained(place).eval()
            else:
                raise InputError(f"{source}: is a {kind} model; give a CLIP model")
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{source}: no CLIP model there: {str(error).splitlines()[0]}") from error
        self.text = kind == "clip"
        if self.text:
            try:
                self.tokenizer = AutoTokenizer.from_pretrained(place)
            except (OSError, ValueError):
                self.text = False
        own = any((d / "preprocessor_config.json").is_file() for d in (folder, folder / "feature_extractor"))
        config = self.model.config.vision_config if kind == "clip" else self.model.config
        self.processor = clip_processor(config.image_size, folder if own else None)

    @torch.inference_mode()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(N, D) embeddings."""
        pixels = self.processor(list(pictures), return_tensors="pt").pixel_values
        if hasattr(self.model, "text_model"):
            pooled = self.model.vision_model(pixel_values=pixels).pooler_output
            return normalize(self.model.visual_projection(pooled).float(), dim=-1)
        return normalize(self.model(pixel_values=pixels).image_embeds.float(), dim=-1)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(N, D) embeddings; long texts are cut."""
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        pooled = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return normalize(self.model.text_projection(pooled).float(), dim=-1)


def summarise(values: Tensor) -> dict[str, float]:
    """Number, mean and percentiles of a 1-d tensor."""
    points = torch.quantile(values, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]))
    names = ("p5", "p25", "p50", "p75", "p95")
    return {
        "n": len(values),
        "mean": round(values.mean().item(), 4),
        **{name: round(point, 4) for name, point in zip(names, points.tolist(), strict=True)},
    }


def _readable(records: Sequence[Record], size: int) -> Iterator[list[tuple[Record, Image.Image, Image.Image]]]:
    """Batches of (record, object, the box of the target); what cannot be read is left to the check."""
    batch = []
    for record in records:
        pictures, _ = look_at(record)
        if not pictures or record.box is None:
            continue
        batch.append((record, pictures[2], pictures[1].crop(record.box)))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def clip_similarity(records: Sequence[Record], clip: Clip, batch_size: int = 32) -> dict[str, dict[str, float]]:
    """Cosines between each object and the place it goes to, with the next triplet's place as a control.

    "object / target crop" near 1 means that the object was cut from the target itself; near the control, that it shows
    another thing. "object / text" needs a text tower and instructions; for CLIP it lies around 0.15 to 0.35.

    Returns:
        Per kind of pair the number, mean and percentiles of the cosine; kinds without pairs are absent.
    """
    objects, places, texts, described = [], [], [], []
    for batch in _readable(records, batch_size):
        objects.append(clip.images([thing for _, thing, _ in batch]))
        places.append(clip.images([place for _, _, place in batch]))
        words = [(n, r.instruction) for n, (r, _, _) in enumerate(batch) if r.instruction]
        if clip.text and words:
            texts.append(clip.texts([w for _, w in words]))
            described.append(objects[-1][[n for n, _ in words]])
    if not objects:
        return {}
    thing, place = torch.cat(objects), torch.cat(places)
    result = {"object / target crop": summarise((thing * place).sum(-1))}
    if len(thing) > 1:
        result["object / another's crop"] = summarise((thing * place.roll(1, 0)).sum(-1))
    if texts:
        result["object / text"] = summarise((torch.cat(described) * torch.cat(texts)).sum(-1))
    return result
