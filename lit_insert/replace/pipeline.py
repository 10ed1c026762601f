"""Replace the person of a photo: gate, mask, region, hole, fill, blend, report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from lit_insert.errors import InputError
from lit_insert.images import Picture, as_pictures, flatten_alpha
from lit_insert.inpainting import continue_surround
from lit_insert.replace.colour import match_lab
from lit_insert.replace.compose import background_difference, blend, change_inside, over, seam_ratio, seamless
from lit_insert.replace.cutout import CutOut, cut_out, has_alpha, place, render
from lit_insert.replace.fills import Fill, FillRequest, OpenCVFill
from lit_insert.replace.region import (
    Region,
    ReplaceMask,
    around_both,
    as_replace_mask,
    box_of,
    choose_components,
    clipped,
    dig_hole,
)
from lit_insert.replace.settings import ReplaceSettings
from lit_insert.replace.steps import ReplaceReport, ReplaceSteps


class Segmenter(Protocol):
    """Finds people, as `lit_insert.mask_decoder.pipeline.MaskPipeline` does."""

    def __call__(self, image: Any, *, threshold: float = 0.5) -> Any:
        """Returns an object with ``masks`` (grey pictures, one a photo) and ``presence`` (in [0,1], one a photo)."""
        ...


@dataclass
class ReplaceOutput:
    """What `ReplacePipeline` returns.

    Attributes:
        image: The result at the photo's size; the photo itself if nothing was replaced.
        steps: Every stage.
        report: Figures, and whether and why not anything was replaced.
    """

    image: Image.Image
    steps: ReplaceSteps
    report: ReplaceReport


class ReplacePipeline:
    """Takes a person out of a photo and puts another in.

    One flow for a cut-out (pasted), a prompt or class (generated), and a reference (generated from it): find the
    person, cut a square around it, dig a hole with a soft edge, fill it, blend it back. Every pixel where the
    resulting alpha is 0 keeps its bytes.

    Args:
        fill: What fills the hole; OpenCV's inpainting by default.
        segmenter: Finds the person, cuts out what has no alpha, and judges the result. Without one, masks must be
            given, and presence is not judged.
    """

    def __init__(self, fill: Fill | None = None, segmenter: Segmenter | None = None) -> None:
        self.fill: Fill = fill or OpenCVFill()
        self.segmenter = segmenter

    def __call__(
        self,
        image: Picture,
        *,
        cut_out: Picture | None = None,
        cut_out_mask: Picture | None = None,
        reference: Picture | None = None,
        reference_mask: Picture | None = None,
        prompt: str | None = None,
        class_label: int | None = None,
        mask: Picture | None = None,
        seed: int = 0,
        settings: ReplaceSettings | None = None,
    ) -> ReplaceOutput:
        """Replace the person of one photo.

        Args:
            image: The photo: PIL picture or path.
            cut_out: The new person, pasted as it is: with alpha, or found by the segmenter.
            cut_out_mask: White where the new person is, for a ``cut_out`` without alpha.
            reference: The new person as a model for the fill to begin from; alpha and mask as of ``cut_out``. Where
                there is neither, and nothing is found in it, all of it is used.
            reference_mask: White where the person is in ``reference``.
            prompt: What to make, for a fill that follows words. With ``cut_out``, what is behind it.
            class_label: Which class to make, for a fill that follows classes.
            mask: White where the person is in ``image``; takes the segmenter's place.
            seed: Of the fill's noise; the same seed gives the same result.
            settings: How.

        Raises:
            InputError: If it is not said what to put in, the fill cannot follow it, there is no mask and no
                segmenter, or a picture is unreadable or does not fit its mask.
        """
        how = settings or ReplaceSettings()
        self._check_wish(cut_out, reference, prompt, class_label)
        photo = flatten_alpha(as_pictures(image, "image")[0])
        steps, report = ReplaceSteps(np.array(photo)), ReplaceReport()
        person = self._find(photo, mask, how, steps, report)
        if person is None:
            return ReplaceOutput(photo, steps, report)
        pasted = cut_out is not None
        wish, wish_mask = (cut_out, cut_out_mask) if pasted else (reference, reference_mask)
        thing = None if wish is None else self._thing(wish, wish_mask, "cut-out" if pasted else "reference", how)
        region, layer = _arrange(person, thing, how, steps, report)
        inside = region.crop(person)
        if layer is not None and thing is not None and not pasted and not thing.whole:
            inside = inside | (layer[..., 3] > 127)  # room for what the model makes of the reference
        hole, soft = dig_hole(ReplaceMask(inside), how.grow)
        steps.hole = hole
        filled = self._filled(region.crop(steps.photo), soft, layer, pasted, (prompt, class_label, seed), steps)
        result, alpha = _blended(steps.photo, region, filled, soft, layer if pasted else None, how, steps)
        self._judge(person, region, layer, result, alpha, how, steps, report)
        picture = Image.fromarray(result)
        picture.info = dict(photo.info)
        return ReplaceOutput(picture, steps, report)

    def _check_wish(
        self, cut_out: Picture | None, reference: Picture | None, prompt: str | None, class_label: int | None
    ) -> None:
        if cut_out is not None and reference is not None:
            raise InputError("give a cut-out or a reference, not both")
        if cut_out is None and reference is None and prompt is None and class_label is None:
            raise InputError("say what to put in: a cut-out, a reference, a prompt or a class")
        for key, name, value in (
            ("prompt", "a prompt", prompt),
            ("class_label", "a class", class_label),
            ("start", "a reference", reference),
        ):
            if value is not None and key not in self.fill.follows:
                raise InputError(f"the {self.fill.name} fill cannot follow {name}; choose another fill")

    def _find(
        self,
        photo: Image.Image,
        mask: Picture | None,
        how: ReplaceSettings,
        steps: ReplaceSteps,
        report: ReplaceReport,
    ) -> ReplaceMask | None:
        """Gate, mask and components; ``None``, with the reason in the report, if there is nobody to replace."""
        found = None if self.segmenter is None else self.segmenter(photo, threshold=how.mask_threshold)
        if found is not None:
            report.presence_before = float(found.presence[0])
        if mask is not None:
            name = f"mask {mask}" if isinstance(mask, str | Path) else "mask"
            everyone = as_replace_mask(as_pictures(mask, name)[0], photo.size, name)
        elif found is None:
            raise InputError("give a mask of the person, or a mask model that finds it")
        else:
            everyone = as_replace_mask(found.masks[0], photo.size)
        steps.mask = everyone
        if mask is None and (report.presence_before or 0) < how.presence_threshold:
            report.reason = f"no person found (presence {report.presence_before:.2f})"
            return None
        person = choose_components(everyone, how.components, how.min_area)
        if not person.any():
            what = "no part of the mask is the one asked for" if everyone.any() else "the mask is empty"
            report.reason = f"no person to replace ({what})"
            return None
        steps.person = person
        report.person_area = float(person.mean())
        return person

    def _thing(self, picture: Picture, mask: Picture | None, kind: str, how: ReplaceSettings) -> CutOut:
        """What is pasted, or begun from: cut out by a mask, its alpha, or the segmenter, in this order."""
        name = f"{kind} {picture}" if isinstance(picture, str | Path) else f"the {kind}"
        pixels = as_pictures(picture, name, alpha=True)[0]
        if mask is not None:
            where = as_replace_mask(as_pictures(mask, f"mask of {name}")[0], pixels.size, f"mask of {name}")
            return cut_out(pixels, where, name)
        if has_alpha(pixels):
            return cut_out(pixels, name=name)
        if self.segmenter is not None:
            found = self.segmenter(flatten_alpha(pixels), threshold=how.mask_threshold)
            where = choose_components(as_replace_mask(found.masks[0], pixels.size), "largest", how.min_area)
            if where.any() and float(found.presence[0]) >= how.presence_threshold:
                return cut_out(pixels, where, name)
        if kind == "cut-out":
            raise InputError(
                f"{name}: no transparency, and no person found in it; give a picture with alpha, or a mask"
            )
        return CutOut(np.array(pixels.convert("RGBA")), hard=False, cut_below=True, whole=True)

    def _filled(
        self,
        square: np.ndarray,
        soft: np.ndarray,
        layer: np.ndarray | None,
        pasted: bool,
        wish: tuple[str | None, int | None, int],
        steps: ReplaceSteps,
    ) -> np.ndarray:
        """The square with its hole filled; ``wish`` is (prompt, class, seed)."""
        hole, image, start = ReplaceMask(soft > 0), square, None
        if layer is not None and (not pasted or self.fill.sees_paste):
            # A model sees the thing over a plain continuation of the background.
            behind = square if hole.all() else continue_surround(square, hole, side=256)
            shown = blend(behind, layer[..., :3], layer[..., 3] / np.float32(255))
            if pasted:
                image, hole = shown, ReplaceMask(hole & (layer[..., 3] < 128))
            else:
                start = shown
        steps.start = start
        prompt, class_label, seed = wish
        request = FillRequest(image, hole, start, prompt, class_label, seed)
        steps.filled = self.fill(request) if hole.any() else image
        return steps.filled

    def _judge(
        self,
        person: ReplaceMask,
        region: Region,
        layer: np.ndarray | None,
        result: np.ndarray,
        alpha: np.ndarray,
        how: ReplaceSettings,
        steps: ReplaceSteps,
        report: ReplaceReport,
    ) -> None:
        photo = steps.photo
        report.replaced = True
        report.region = (region.left, region.top, region.side)
        report.hole_area = float((alpha > 0).mean())
        report.background_max_abs_diff = background_difference(photo, result, alpha)
        report.hole_change = change_inside(photo, result, person)
        report.seam_gradient_ratio = seam_ratio(photo, result, alpha, max(2, round(how.grow * region.side)))
        if self.segmenter is None:
            return
        found = self.segmenter(Image.fromarray(result), threshold=how.mask_threshold)
        steps.mask_after = as_replace_mask(found.masks[0], (photo.shape[1], photo.shape[0]))
        report.presence_after = float(found.presence[0])
        new = person if layer is None else region.uncrop(layer[..., 3] > 127, np.zeros(person.shape, bool))
        report.found_after = float(steps.mask_after[new].mean()) if new.any() else None


def _arrange(
    person: ReplaceMask, thing: CutOut | None, how: ReplaceSettings, steps: ReplaceSteps, report: ReplaceReport
) -> tuple[Region, np.ndarray | None]:
    """The region, and on its canvas the thing (S,S,4) at its place and in the photo's light."""
    size = (person.shape[1], person.shape[0])
    outline, box = box_of(person), None
    if thing is not None:
        box = report.placed = place(thing, person, fit=how.fit, align=how.align, scale=how.scale)
        if thing.whole:
            report.notes.append("no person found in the reference; all of it is used")
        else:
            outline = around_both(outline, clipped(box, size))
            if thing.cut_below and box[3] < size[1] - 1:
                report.notes.append("the cut-out's own picture cuts it off below, and its lower end can be seen")
    region = Region.around(outline, size, how.region_scale)
    steps.region = square = region.crop(steps.photo)
    if thing is None or box is None:
        return region, None
    layer = render(thing, box, region)
    inside = region.crop(person)
    weight = (inside if how.colour_reference == "person" else ~inside).astype(np.float32)
    layer[..., :3] = match_lab(layer[..., :3], layer[..., 3] / np.float32(255), square, weight, how.colour_strength)
    steps.paste = layer
    return region, layer


def _blended(
    photo: np.ndarray,
    region: Region,
    filled: np.ndarray,
    soft: np.ndarray,
    paste: np.ndarray | None,
    how: ReplaceSettings,
    steps: ReplaceSteps,
) -> tuple[np.ndarray, np.ndarray]:
    """The result (H,W,3) and how new each of its pixels is (H,W)."""
    square = region.crop(photo)
    paint = seamless(filled, square, ReplaceMask(soft > 0)) if how.seamless else filled
    blended, alpha = blend(square, paint, soft), soft
    if paste is not None:
        over_it = paste[..., 3] / np.float32(255)
        blended, alpha = blend(blended, paste[..., :3], over_it), over(soft, over_it)
    steps.blended = blended
    steps.alpha = region.uncrop(alpha, np.zeros(photo.shape[:2], np.float32))
    steps.result = region.uncrop(blended, photo)
    return steps.result, steps.alpha
