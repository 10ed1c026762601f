"""The report: photo, result and every step between them in a row, and the figures below."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from lit_insert.images import NEUTRAL, flatten_alpha
from lit_insert.replace.pipeline import ReplaceOutput
from lit_insert.replace.steps import ReplaceReport
from lit_insert.report import Report

_TITLES = {
    "photo": "photo",
    "result": "result",
    "mask": "mask",
    "person": "replaced part",
    "region": "region",
    "hole": "hole",
    "paste": "pasted",
    "start": "start of the fill",
    "filled": "fill",
    "blended": "blended",
    "alpha": "alpha",
    "mask_after": "mask of the result",
}
_FIGURES = (
    ("hole_area", "hole area"),
    ("background_max_abs_diff", "background max. difference"),
    ("hole_change", "change inside"),
    ("seam_gradient_ratio", "seam gradient ratio"),
    ("presence_before", "presence before"),
    ("presence_after", "presence after"),
    ("found_after", "found after"),
)


@dataclass
class ReplacePage:
    """Collects replacements and makes one HTML page of them.

    Args:
        rows: Most photos that are shown; the figures of all are listed.
        side: Longer side in pixels at which steps are kept; whole photos of a long run would fill the memory.
    """

    rows: int = 32
    side: int = 384
    _shown: list[tuple[str, dict[str, Image.Image]]] = field(default_factory=list)
    _figures: list[tuple[str, ReplaceReport]] = field(default_factory=list)

    def add(self, name: str, output: ReplaceOutput) -> None:
        """Note a replacement under a name."""
        self._figures.append((name, output.report))
        if len(self._shown) < self.rows:
            pictures = output.steps.pictures()
            self._shown.append((name, {key: _small(p, self.side) for key, p in pictures.items()}))

    def page(self, subtitle: str = "", settings: Sequence[tuple[str, object]] = ()) -> Report:
        """The page; ``settings`` are listed at its end."""
        report = Report("Replacements", subtitle)
        used = [key for key in _TITLES if any(key in pictures for _, pictures in self._shown)]
        report.heading("Every step").images(
            [[name, *(pictures.get(key) for key in used)] for name, pictures in self._shown],
            header=["", *(_TITLES[key] for key in used)],
            cell_px=160,
        )
        report.heading("Figures").text(
            "The background is where alpha is 0; its difference is in steps of 1/255 and must be 0. The seam gradient "
            "ratio compares gradients along the seam with those of the photo beside it: about 1 shows nothing. "
            "Presence and what is found after are the mask model's."
        )
        report.table(
            ["photo", *(title for _, title in _FIGURES), "remarks"],
            [
                [
                    name,
                    *(getattr(figures, key) for key, _ in _FIGURES),
                    "; ".join([figures.reason, *figures.notes]).strip("; "),
                ]
                for name, figures in self._figures
            ],
        )
        if settings:
            report.heading("Settings").table(["setting", "value"], [[name, str(value)] for name, value in settings])
        return report


def _small(picture: Image.Image, side: int) -> Image.Image:
    copy = picture.copy() if picture.mode == "L" else flatten_alpha(picture, NEUTRAL).copy()
    copy.thumbnail((side, side))
    return copy
