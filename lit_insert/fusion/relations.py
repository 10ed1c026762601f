"""Words for a place: an area of the picture, a thing, or a side of a thing."""

import re
from typing import NamedTuple

import numpy as np

from lit_insert.fusion.choices import AREAS

_SIDES = {
    "right": (0, 1),
    "left": (0, -1),
    "above": (-1, 0),
    "below": (1, 0),
}
_RELATIONS = (
    (r"(?:to the |on the )?(right|left) (?:side )?of", None),
    (r"(?:right |directly |just )?(?:above|over)", "above"),
    (r"(?:right |directly |just )?(?:below|under|underneath|beneath)", "below"),
    (r"(?:next to|beside|by|near|close to|around)", "near"),
    (r"(?:on top of|on|in|inside|at|upon)", "on"),
)
_FILLER = r"(?:(?:on|in|at|to) )?(?:the )?"
_NAMES = {"upper": "top", "lower": "bottom", "middle": "center", "centre": "center", "centered": "center"}


class Location(NamedTuple):
    """What a phrase says.

    Attributes:
        area: One of `lit_insert.fusion.choices.AREAS`; None if it names no area.
        relation: "right", "left", "above", "below", "near" or "on" a thing; None without one.
        thing: The thing, in words; None if the phrase names an area alone.
    """

    area: str | None = None
    relation: str | None = None
    thing: str | None = None


def parse_location(phrase: str) -> Location:
    """Read "bottom left", "right of the blue ring", "on the flower" or the name of a thing.

    What is none of these is taken whole as the name of a thing.
    """
    words = " ".join(phrase.lower().split()).strip(" .,")
    if area := _area(words):
        return Location(area=area)
    for pattern, name in _RELATIONS:
        found = re.fullmatch(rf"{pattern} (.+)", words)
        if found:
            thing = found[found.lastindex or 1]
            relation = name or found[1]
            area = _area(thing) if relation == "on" else None
            return Location(area=area) if area else Location(relation=relation, thing=thing)
    return Location(relation="on", thing=words)


def _area(words: str) -> str | None:
    stem = re.sub(rf"^{_FILLER}", "", words)
    stem = re.sub(r" of the (?:picture|image|scene|photo)$", "", stem)
    stem = re.sub(r" (?:corner|half|side|part|area|region|edge)$", "", stem)
    parts = [_NAMES.get(part, part) for part in re.split(r"[\s_-]+", stem) if part]
    name = "_".join(parts)
    return name if name in AREAS and name != "anywhere" else None


def beside(heat: np.ndarray, relation: str | None) -> np.ndarray:
    """Heat of a thing turned into heat of where a relation to it points.

    Sides are strongest next to the thing and fall with the distance, and with the angle beyond the thing's own
    extent; "near" is all sides. "on", or no relation, is the thing itself.

    Args:
        heat: (H,W) in [0,1], where the thing is.
        relation: As of `Location`.

    Returns:
        (H,W) in [0,1], scaled as the heat was.
    """
    peak = float(heat.max(initial=0.0))
    if relation in (None, "on") or peak <= 0:
        return heat
    inside = heat > 0.5 * peak
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    y, x = np.arange(heat.shape[0])[:, None] + 0.5, np.arange(heat.shape[1])[None] + 0.5
    out_y = np.maximum(np.maximum(top - y, y - bottom), 0) + 0 * x
    out_x = np.maximum(np.maximum(left - x, x - right), 0) + 0 * y
    reach = 0.25 * max(heat.shape)
    falling = np.exp(-np.hypot(out_y, out_x) / reach)
    if relation == "near":
        field = np.where(inside, 0.0, falling)
    else:
        dy, dx = _SIDES[str(relation)]
        along = dy * (y - (top + bottom) / 2) + dx * (x - (left + right) / 2)
        half = (bottom - top) / 2 if dy else (right - left) / 2
        across = np.abs(x - (left + right) / 2) if dy else np.abs(y - (top + bottom) / 2)
        wide = (right - left) / 2 if dy else (bottom - top) / 2
        field = np.where(along > half, falling * np.exp(-((across / max(wide, 1)) ** 2) / 2), 0.0)
    most = float(field.max(initial=0.0))
    return (peak * field / most).astype(np.float32) if most > 0 else np.zeros_like(heat)
