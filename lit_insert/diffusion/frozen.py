"""Loading the published parts that a method builds on, by hub id, local folder or pocket name."""

from pathlib import Path
from typing import Any, TypeVar

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
    looks_local = base.startswith((".", "/", "~")) or base.count("/") != 1
    folder = Path(base).expanduser()
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
    try:
        return cls.from_pretrained(base, **({"subfolder": subfolder} if subfolder else {}), **kwargs)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"cannot load {cls.__name__} from {where}: {reason}") from error
