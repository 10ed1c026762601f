"""Loading the published parts that a method builds on, by hub id, local folder or pocket name."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPTextModel, PreTrainedModel

from lit_insert import pocket
from lit_insert.errors import InputError

Part = TypeVar("Part")


def resolve_base(base: str) -> str:
    """Turn ``pocket`` or ``pocket:<name>`` into a folder; leave hub ids and folders as they are.

    Raises:
        InputError: If a path-like base does not exist.
    """
    if base == "pocket":
        return str(pocket.path("insert"))
    if base.startswith("pocket:"):
        return str(pocket.path(base.removeprefix("pocket:")))
    folder = Path(base).expanduser()
    # "runs/a" could be a hub id too; where runs/ is a folder here, a path is meant.
    looks_local = base.startswith((".", "/", "~")) or base.count("/") != 1 or folder.parent.is_dir()
    if looks_local and not folder.is_dir():
        raise InputError(f"base model folder {base!r} does not exist; give a folder, a hub id or 'pocket'")
    return str(folder) if folder.is_dir() else base


def load_part(cls: type[Part], base: str, subfolder: str | None, **kwargs: Any) -> Part:
    """Load one part of a diffusers or transformers layout in float32.

    Args:
        cls: Its class, with ``from_pretrained``.
        base: Folder or hub id, after :func:`resolve_base`.
        subfolder: Such as "unet"; None if the base is the part itself.
        **kwargs: Passed on.

    Raises:
        InputError: If the part is missing or its weights are unreadable; names it.
    """
    where = f"{base}/{subfolder}" if subfolder else base
    if Path(base).is_dir() and not Path(where).is_dir():
        raise InputError(f"{base} has no {subfolder}/ folder; a {cls.__name__} is expected there")
    if issubclass(cls, PreTrainedModel):
        kwargs.setdefault("dtype", torch.float32)  # else the dtype of the file
    try:
        return cls.from_pretrained(base, **({"subfolder": subfolder} if subfolder else {}), **kwargs)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"cannot load {cls.__name__} from {where}: {reason}") from error


def image_processor(base: str, image_encoder: str | None, side: int) -> CLIPImageProcessor:
    """The preprocessing that goes with an image encoder; training and inference must share it.

    Args:
        base: Folder or hub id, after :func:`resolve_base`.
        image_encoder: Where the encoder comes from if not from the base, after :func:`resolve_base`.
        side: Input side of the encoder in pixels, for CLIP's own values where nothing is stored.

    Raises:
        InputError: If a stored file is unreadable, or makes pictures of another size than the encoder takes.
    """
    found = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    for root, subfolder in ((image_encoder, None), (None if image_encoder else base, "feature_extractor")):
        if root is not None and _may_have(root, subfolder, "preprocessor_config.json"):
            try:
                found = load_part(CLIPImageProcessor, root, subfolder)
            except InputError:
                if Path(root).is_dir():
                    raise
                continue  # a hub repository that simply has none
            break
    made = found.crop_size["height"]
    if made != side:
        raise InputError(f"{image_encoder or base}: the preprocessor makes {made} pixels, the encoder takes {side}")
    return found


@torch.no_grad()
def empty_prompt_states(base: str) -> Tensor:
    """The text encoder's states of the empty prompt, (1, 77, X): what a published UNet knows as "no prompt".

    Args:
        base: Folder or hub id with tokenizer/ and text_encoder/, after :func:`resolve_base`.

    Raises:
        InputError: If the base has no text encoder, or it cannot be loaded.
    """
    tokenizer = load_part(AutoTokenizer, base, "tokenizer")  # type: ignore[type-var]
    encoder = load_part(CLIPTextModel, base, "text_encoder").eval()
    length = encoder.config.max_position_embeddings
    tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return encoder(tokens.input_ids).last_hidden_state


def has_part(base: str, name: str) -> bool:
    """Whether a local base has a part; a hub id is taken to have it, and loading will tell."""
    return _may_have(base, name, "config.json") or _may_have(base, name, "tokenizer_config.json")


def _may_have(root: str, subfolder: str | None, name: str) -> bool:
    folder = Path(root)
    return not folder.is_dir() or (folder / (subfolder or "") / name).is_file()
