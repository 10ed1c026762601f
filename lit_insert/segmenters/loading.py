"""Segmenters by name, and models by name with a message that helps where one cannot be had."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_insert.artifacts.hub import pull_model
from lit_insert.artifacts.resolve import resolve_model
from lit_insert.errors import InputError

if TYPE_CHECKING:
    import torch

    from lit_insert.segmenters.base import Segmenter

# Backend -> where its weights are by default.
SOURCES = {"sam3": "facebook/sam3", "clipseg": "CIDAS/clipseg-rd64-refined", "pocket": "pocket", "given": ""}
UNGATED = ("clipseg", "pocket")


def model_folder(source: str | Path, *, default_pocket: str, ungated: Sequence[str], **hub: Any) -> Path:
    """The folder of a model that is kept here, or on the hub.

    Args:
        source: A folder, a run folder, "pocket" or a hub id.
        default_pocket: Which pocket model a plain "pocket" is.
        ungated: Backends that need no permission, for the message.
        **hub: `lit_insert.artifacts.hub.pull_model`'s options.

    Raises:
        InputError: If it cannot be had; for a hub id the message names the page with its licence and two backends that
            need no permission.
    """
    found = resolve_model(source, default_pocket=default_pocket)
    if found.kind == "checkpoint":
        raise InputError(f"{found.name}: a training checkpoint; export it first (train.py export)")
    if found.kind == "folder":
        return found.path
    try:
        return pull_model(found.location, also=("*.jinja",), **hub)  # chat templates
    except InputError as error:
        page = f"https://huggingface.co/{found.location}"
        other = " or ".join(ungated)
        raise InputError(f"{error}; licence and access: {page}; without permission: {other}") from error


def load_segmenter(
    name: str,
    source: str | Path | None = None,
    device: "str | torch.device" = "cpu",
    dtype: "torch.dtype | None" = None,
    **hub: Any,
) -> "Segmenter":
    """Load a segmenter.

    Args:
        name: "sam3", "clipseg", "pocket" or "given".
        source: Its weights: a folder or a hub id; by default the published ones. For "given" the folder of masks.
        device: Where to compute.
        dtype: Of the weights; float32 by default.
        **hub: For a hub id: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

    Raises:
        InputError: If the name is unknown, or the model cannot be had or is broken.
    """
    if name not in SOURCES:
        raise InputError(f"segmenter {name!r}: unknown; give one of {', '.join(SOURCES)}")
    if name == "given":
        from lit_insert.segmenters.given import GivenSegmenter

        if not source:
            raise InputError("segmenter 'given': name the folder of masks as its source")
        return GivenSegmenter(source)
    import torch

    folder = model_folder(source or SOURCES[name], default_pocket="segment", ungated=UNGATED, **hub)
    dtype = dtype or torch.float32
    if name == "sam3":
        from lit_insert.segmenters.sam3 import Sam3Segmenter

        return Sam3Segmenter.from_folder(folder, dtype=dtype).to(device)
    from lit_insert.segmenters.clipseg import ClipSegSegmenter

    return ClipSegSegmenter.from_folder(folder, name=name, dtype=dtype).to(device)
