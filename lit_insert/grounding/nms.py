"""One thing, one mask: what two labels, or two queries, found twice is kept once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_insert.segmenters.base import Instance


@dataclass(frozen=True)
class Labelled:
    """A thing with the label it was found by."""

    label: str
    instance: Instance


def suppress(
    things: Sequence[Labelled], *, iou: float = 0.7, containment: float = 0.9, part: float = 0.5
) -> list[Labelled]:
    """Leave out duplicates; the surest of them stays, whatever order they come in.

    Two masks show the same thing if they overlap by ``iou`` of their union; or if one lies within the other by
    ``containment`` of its own area, and either both have the same label or it is no mere part: its area is at least
    ``part`` of the other's. So a wheel survives its car, and the head that was also called "dog" does not.

    Args:
        things: All that was found in one picture.
        iou: Smallest intersection over union of duplicates; above 1 for never.
        containment: Smallest intersection over the smaller area; above 1 for never.
        part: Areas' ratio below which a mask inside one of another label is a part of it.

    Returns:
        What stays, in the order given.
    """
    order = sorted(range(len(things)), key=lambda i: _rank(things[i]))
    windows = [_Window(thing.instance) for thing in things]
    kept: list[int] = []
    for i in order:
        if not any(_same(i, j, things, windows, iou, containment, part) for j in kept):
            kept.append(i)
    return [things[i] for i in sorted(kept)]


def _rank(thing: Labelled) -> tuple[float, int, str, tuple[int, ...], str]:
    """Surest first; of equals the label that says more; then anything that does not depend on the order."""
    own = thing.instance
    return (-own.score, -len(thing.label.split()), thing.label, own.box, own.rle["counts"])


class _Window:
    """A mask cut to its box: forty whole masks of a large picture would fill the memory."""

    def __init__(self, instance: Instance) -> None:
        self.x, self.y, width, height = instance.box
        self.inside: np.ndarray = instance.mask[self.y : self.y + height, self.x : self.x + width].copy()
        self.area = instance.area

    def shared(self, other: "_Window") -> int:
        """Pixels in both."""
        left, top = max(self.x, other.x), max(self.y, other.y)
        right = min(self.x + self.inside.shape[1], other.x + other.inside.shape[1])
        bottom = min(self.y + self.inside.shape[0], other.y + other.inside.shape[0])
        if right <= left or bottom <= top:
            return 0
        one = self.inside[top - self.y : bottom - self.y, left - self.x : right - self.x]
        two = other.inside[top - other.y : bottom - other.y, left - other.x : right - other.x]
        return int(np.count_nonzero(one & two))


def _same(
    i: int,
    j: int,
    things: Sequence[Labelled],
    windows: Sequence[_Window],
    iou: float,
    containment: float,
    part: float,
) -> bool:
    shared = windows[i].shared(windows[j])
    if not shared:
        return False
    small, large = sorted((windows[i].area, windows[j].area))
    if shared >= iou * (small + large - shared):
        return True
    return shared >= containment * small and (things[i].label == things[j].label or small >= part * large)
