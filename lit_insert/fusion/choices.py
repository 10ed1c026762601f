"""The words that a user may choose from; importing this costs nothing."""

from typing import Literal, get_args

from lit_insert.errors import InputError

Overlap = Literal["allow", "no_overwrite", "alpha"]
Backdrop = Literal["scene", "mean", "edge", "black"]
Scaling = Literal["pixel", "latent"]
OVERLAPS, BACKDROPS, SCALINGS = get_args(Overlap), get_args(Backdrop), get_args(Scaling)

# Area -> which part of the rows and of the columns.
AREAS: dict[str, tuple[str, str]] = {
    f"{row}_{column}" if row and column else row or column or "anywhere": (row or "any", column or "any")
    for row in ("top", "bottom", "")
    for column in ("left", "right", "")
} | {"center": ("middle", "middle")}


def check_area(name: str) -> str:
    """A known area's name.

    Raises:
        InputError: If there is none of this name.
    """
    if name not in AREAS:
        raise InputError(f"target_area {name!r}: unknown; give one of {', '.join(AREAS)}")
    return name
