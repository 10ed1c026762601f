"""The parts of a fusion: which model a name stands for, checked at once, loaded when it is needed."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderRAE

from lit_insert.artifacts.hub import pull_model
from lit_insert.artifacts.resolve import INDEX, Source, resolve_model
from lit_insert.artifacts.weights import cast, load_component
from lit_insert.errors import InputError
from lit_insert.fusion.convert import load_published
from lit_insert.fusion.latents import PART, POCKET, LatentSpace, load_autoencoder
from lit_insert.fusion.memory import Lazy
from lit_insert.fusion.network import DiTDH
from lit_insert.segmenters.loading import load_segmenter

TRANSFORMER, GUIDE = "transformer", "guidance_transformer"


class Sources(NamedTuple):
    """Where the parts of a fusion come from; None where there is none.

    Attributes:
        autoencoder: An AutoencoderRAE.
        transformer: A DiT^DH.
        guidance_transformer: A weaker one, for autoguidance.
    """

    autoencoder: str | None
    transformer: str | None
    guidance_transformer: str | None


def find_parts(
    source: str | Path | None,
    autoencoder: str | Path | None = None,
    transformer: str | Path | None = None,
    guidance_transformer: str | Path | None = None,
) -> Sources:
    """Settle where the parts come from; reads no weights.

    Args:
        source: A folder with several of them, "pocket" or a hub id; None if they are all named.
        autoencoder: Takes the place of the folder's.
        transformer: Takes the place of the folder's.
        guidance_transformer: Takes the place of the folder's.

    Raises:
        InputError: If a name stands for nothing.
    """
    inside = dict.fromkeys((PART, TRANSFORMER, GUIDE))
    if source is not None and not (autoencoder and transformer):
        folder = _folder(resolve_model(source, POCKET))
        if not (folder / INDEX).is_file():
            raise InputError(f"{source}: no {INDEX} in it; name the parts: an autoencoder and a transformer")
        for name in inside:
            inside[name] = str(folder / name) if (folder / name).is_dir() else None  # type: ignore[assignment]
    given = {PART: autoencoder, TRANSFORMER: transformer, GUIDE: guidance_transformer}
    for name, own in given.items():
        if own is not None:
            if Path(own).suffix == ".pt":
                if not Path(own).is_file():
                    raise InputError(f"{name} {own}: no such file")
            else:
                resolve_model(own, POCKET)
            inside[name] = str(own)  # type: ignore[assignment]
    return Sources(*inside.values())


def _folder(found: Source) -> Path:
    if found.kind == "checkpoint":
        raise InputError(f"{found.name}: a checkpoint; export the run first (train.py export)")
    return pull_model(found.location) if found.kind == "hub" else found.path


def load_transformer(source: str | Path, dtype: torch.dtype = torch.float32) -> DiTDH:
    """A DiT^DH.

    Args:
        source: An exported folder or run, a folder with one as ``transformer/``, a hub id, or a published ``.pt``.
        dtype: Of the weights.

    Raises:
        InputError: If there is none, or it is broken.
    """
    if Path(source).suffix == ".pt":
        return cast(load_published(source), dtype)
    folder = _folder(resolve_model(source, POCKET))
    if (folder / INDEX).is_file():
        return load_component(DiTDH, folder, TRANSFORMER, dtype=dtype)
    return load_component(DiTDH, folder.resolve().parent, folder.resolve().name, dtype=dtype)


def lazy_autoencoder(given: "str | Path | AutoencoderRAE | LatentSpace", dtype: torch.dtype) -> Lazy[LatentSpace]:
    """The autoencoder, loaded when it is needed, unless it is there."""
    if isinstance(given, str | Path):
        return Lazy(lambda: LatentSpace(load_autoencoder(given, dtype)))
    return Lazy(None, given if isinstance(given, LatentSpace) else LatentSpace(given))


def lazy_transformer(given: "str | Path | DiTDH | None", dtype: torch.dtype) -> Lazy[DiTDH] | None:
    """A transformer, loaded when it is needed, unless it is there."""
    if given is None:
        return None
    if isinstance(given, str | Path):
        return Lazy(lambda: load_transformer(given, dtype))
    return Lazy(None, given.eval().requires_grad_(False))


def lazy_segmenter(given: Any, source: str | Path | None, dtype: torch.dtype) -> Lazy[Any]:
    """A segmenter of a name, loaded when it is needed, or one that is there."""
    if isinstance(given, str):
        return Lazy(lambda: load_segmenter(given, source, dtype=dtype))
    return Lazy(None, given)


def write_index(folder: Path, guide: bool) -> None:
    """Write the list of parts of an exported folder."""
    index = {
        "_class_name": "FusionPipeline",
        PART: ["diffusers", "AutoencoderRAE"],
        TRANSFORMER: ["lit_insert.fusion.network", "DiTDH"],
    }
    if guide:
        index[GUIDE] = ["lit_insert.fusion.network", "DiTDH"]
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
