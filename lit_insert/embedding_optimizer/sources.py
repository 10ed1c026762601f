"""The parts of an insertion model, from wherever they are kept, each checked to be complete."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPVisionModelWithProjection

from lit_insert.artifacts.hub import pull_model
from lit_insert.artifacts.json_file import read_object
from lit_insert.artifacts.resolve import INDEX, Source
from lit_insert.artifacts.weights import cast, load_component, load_onto, read_torch, trained_weights
from lit_insert.diffusion.unet import has_lora, merge_lora
from lit_insert.embedding_optimizer.network import EmbeddingOptimizer
from lit_insert.embedding_optimizer.parts import InsertParts, load_parts
from lit_insert.errors import InputError

MODELS: dict[str, type] = {
    "vae": AutoencoderKL,
    "unet": UNet2DConditionModel,
    "image_encoder": CLIPVisionModelWithProjection,
    "embedding_optimizer": EmbeddingOptimizer,
}


def load_folder_parts(source: Source, dtype: torch.dtype, given: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Folder of an exported model, fetched from the hub if need be, and its loaded models.

    Args:
        source: Of kind "folder" or "hub".
        dtype: Of the weights.
        given: Keyword arguments of ``from_pretrained``; components among them are not loaded.

    Raises:
        InputError: If a part is missing, truncated or incomplete.
    """
    folder = source.path
    if source.kind == "hub":
        options = ("revision", "token", "cache_dir", "local_files_only", "force_download")
        folder = pull_model(source.location, **{k: given[k] for k in options if k in given})
    index = read_object(folder / INDEX)
    if "embedding_optimizer" not in index and "embedding_optimizer" not in given:
        raise InputError(
            f"{source.name}: has no embedding_optimizer (the trained adapter); it is a base to train from, "
            "not a model to insert with"
        )
    variant = given.get("variant")
    return folder, {
        name: load_component(cls, folder, name, dtype=dtype, variant=variant)
        for name, cls in MODELS.items()
        if name not in given
    }


def load_checkpoint_parts(path: Path, dtype: torch.dtype) -> InsertParts:
    """Components of a training checkpoint: the base it names, with the trained weights on top.

    The moving average is used where the checkpoint has one, and LoRA updates are merged.

    Raises:
        InputError: If the checkpoint is unreadable, of another method, or does not fit its base.
    """
    checkpoint = read_torch(path)
    weights = trained_weights(checkpoint, str(path))
    hyper = checkpoint.get("hyper_parameters") or {}
    if not isinstance(hyper.get("base"), str) or not any(k.startswith("embedding_optimizer.") for k in weights):
        raise InputError(f"{path}: not a checkpoint of the embedding optimizer (no base or no adapter in it)")
    parts = load_parts(
        hyper["base"],
        hyper.get("image_encoder"),
        **{name: hyper.get(name) for name in ("adapter", "unet", "sampling")},
    )
    for name in MODELS:
        part: Any = getattr(parts, name)
        own = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}
        needed = {"unet": parts.tuned, "embedding_optimizer": [k for k, _ in part.named_parameters()]}
        load_onto(part, own, str(path), need=set(needed.get(name, ())))
        cast(part, dtype)
    if has_lora(parts.unet):
        parts.unet = merge_lora(parts.unet)
    return parts
