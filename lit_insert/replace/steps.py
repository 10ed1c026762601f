"""What happens to a photo on the way, each stage as a picture, and the figures at the end."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lit_insert.images import save_image


@dataclass
class ReplaceReport:
    """How a replacement went.

    Attributes:
        replaced: Whether anything was.
        reason: Why not; empty if it was.
        person_area: Replaced person, as a fraction of the photo.
        hole_area: What was painted over, soft edge included, as a fraction of the photo.
        background_max_abs_diff: Largest difference of any channel outside that, in steps of 1/255.
        hole_change: Mean difference where the person was, in steps of 1/255.
        seam_gradient_ratio: Gradients along the seam over those of the photo beside it; about 1 shows nothing.
        presence_before: Whether the mask model sees a person in the photo, in [0,1]; ``None`` without a model.
        presence_after: The same for the result.
        found_after: Fraction of the new thing's place that the mask model sees as a person in the result.
        region: Left, top and side of the square that was worked on, in pixels.
        placed: Left, top, right and bottom of what was pasted; ``None`` if nothing was.
        notes: What the user may want to know.
    """

    replaced: bool = False
    reason: str = ""
    person_area: float = 0.0
    hole_area: float = 0.0
    background_max_abs_diff: int = 0
    hole_change: float = 0.0
    seam_gradient_ratio: float | None = None
    presence_before: float | None = None
    presence_after: float | None = None
    found_after: float | None = None
    region: tuple[int, int, int] | None = None
    placed: tuple[int, int, int, int] | None = None
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = dataclasses.asdict(self)
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}


@dataclass
class ReplaceSteps:
    """Every stage of a replacement; what was not reached, or not needed, is ``None``.

    Pixels are uint8, masks bool, alpha float32 in [0,1]; (H,W) is the photo's size, S the region's side.

    Attributes:
        photo: (H,W,3).
        mask: (H,W), all that was found or given.
        person: (H,W), the parts that are replaced.
        region: (S,S,3), cut out of the photo and mirrored beyond its border.
        hole: (S,S), where something new is made.
        paste: (S,S,4) RGBA, the cut-out or the reference in its place, colours fitted.
        start: (S,S,3), what the filling model begins with.
        filled: (S,S,3), as it came from the fill.
        blended: (S,S,3), with soft edges and the paste on top.
        alpha: (H,W), how much of each pixel is new; exactly 0 means untouched.
        result: (H,W,3).
        mask_after: (H,W), what the mask model finds in the result.
    """

    photo: np.ndarray
    mask: np.ndarray | None = None
    person: np.ndarray | None = None
    region: np.ndarray | None = None
    hole: np.ndarray | None = None
    paste: np.ndarray | None = None
    start: np.ndarray | None = None
    filled: np.ndarray | None = None
    blended: np.ndarray | None = None
    alpha: np.ndarray | None = None
    result: np.ndarray | None = None
    mask_after: np.ndarray | None = None

    def pictures(self) -> dict[str, Image.Image]:
        """The stages that there are, in order, as RGB, RGBA or grey pictures."""
        return {
            f.name: _picture(value)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), np.ndarray)
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``01_photo.png``, ``02_mask.png`` … of the stages that there are; returns the paths."""
        folder = Path(folder)
        number = {f.name: index for index, f in enumerate(dataclasses.fields(self), start=1)}
        return [save_image(p, folder / f"{number[name]:02d}_{name}.png") for name, p in self.pictures().items()]


def _picture(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3:
        return Image.fromarray(pixels)
    return Image.fromarray(np.rint(pixels.astype(np.float32) * 255).astype(np.uint8))
