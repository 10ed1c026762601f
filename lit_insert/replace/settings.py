"""How a replacement is made: every choice that a user has, with defaults that suit photos."""

from dataclasses import dataclass
from typing import Literal

from lit_insert.errors import InputError

Components = Literal["all", "largest"] | int
Fit = Literal["auto", "height", "width"]
Align = Literal["feet", "head"]


@dataclass(frozen=True)
class ReplaceSettings:
    """How to replace; everything has a default that suits photos.

    Attributes:
        presence_threshold: Photos in which the mask model is less sure than this of a person are left alone.
        mask_threshold: Probability above which a pixel belongs to the person.
        components: Which connected part of the mask is replaced: "largest", "all", or a number, 0 the largest.
        min_area: Parts smaller than this fraction of the photo are ignored.
        region_scale: Side of the square that is worked on, over the longer side of what is in it; ``None`` takes
            the whole photo.
        grow: How far the hole reaches beyond the mask, as a fraction of the square.
        fit: What a cut-out's size follows: "height", "width" or "auto" (see `lit_insert.replace.cutout.place`).
        align: Which end meets the person's: "feet" or "head".
        scale: Factor on the cut-out's size.
        colour_strength: How far mean and spread of a cut-out's colours move to those of ``colour_reference``,
            0 to 1.
        colour_reference: "surround" (the photo beside the person: light and haze) or "person" (the one replaced:
            light, but their clothes too).
        seamless: Fit the fill's colours to the photo by Poisson blending.
    """

    presence_threshold: float = 0.5
    mask_threshold: float = 0.5
    components: Components = "largest"
    min_area: float = 0.001
    region_scale: float | None = 1.5
    grow: float = 0.03
    fit: Fit = "auto"
    align: Align = "feet"
    scale: float = 1.0
    colour_strength: float = 0.25
    colour_reference: Literal["surround", "person"] = "surround"
    seamless: bool = False

    def __post_init__(self) -> None:
        if self.region_scale is not None and not 1.2 <= self.region_scale <= 10:
            raise InputError(f"region_scale is {self.region_scale:g}; give 1.2 to 10, so that some surround is seen")
        for name, low, high in (("grow", 0.0, 0.1), ("colour_strength", 0.0, 1.0), ("scale", 0.05, 20.0)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} is {value:g}; give {low:g} to {high:g}")
