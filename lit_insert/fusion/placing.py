"""The first stage: cut objects out, find their places, and fuse their features into the scene's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lit_insert.diffusion.noise import step_generator
from lit_insert.errors import InputError
from lit_insert.fusion import placement as where
from lit_insert.fusion.compose import TAKEN, Fused, Layer, add_layer, weight
from lit_insert.fusion.finding import Found
from lit_insert.fusion.latents import LatentSpace
from lit_insert.fusion.objects import FusionObject, FusionSettings
from lit_insert.fusion.placement import Placement, Window
from lit_insert.fusion.scaling import (
    CutOut,
    backdrop_canvas,
    canvas_of,
    core_of,
    coverage,
    full_canvas,
    opaque_alpha,
    paste,
    resized,
    target_size,
    warp,
)
from lit_insert.images import flatten_alpha
from lit_insert.letterbox import Frame
from lit_insert.letterbox import place as letterboxed

Scorer = Callable[[Tensor, str], float]


@dataclass
class Scene:
    """A scene as the first stage sees it.

    Attributes:
        picture: RGB or RGBA, upright.
        path: Its file, or "".
        canvas: (3,S,S) in [0,1].
        frame: Where it lies on the canvas.
        valid: The cells that it covers.
        cell: Pixels of a cell's side.
    """

    picture: Image.Image
    path: str
    canvas: Tensor
    frame: Frame
    valid: Window
    cell: int

    @classmethod
    def of(cls, picture: Image.Image, path: str, space: LatentSpace) -> "Scene":
        """A scene on the canvas of an autoencoder."""
        pixels = np.array(flatten_alpha(picture), dtype=np.float32) / 255
        canvas, frame = canvas_of(torch.from_numpy(pixels).permute(2, 0, 1), space.input_size)
        cell = space.input_size // space.grid
        return cls(picture, path, canvas, frame, where.whole_cells(frame, cell), cell)


class Sized(NamedTuple):
    """An object brought to size.

    Attributes:
        scale: Its longer side over the scene's.
        core: (h,w) bool, its cells.
        place: Window to the object there.
    """

    scale: float
    core: np.ndarray
    place: "Callable[[Window], Placed]"


class Placed(NamedTuple):
    """An object at its place.

    Attributes:
        features: (C,G,G).
        pixels: (S,S) in [0,1], its own pixels.
        canvas: (3,S,S), what the scene looks like with it; objects after it are painted on that.
    """

    features: Tensor
    pixels: Tensor
    canvas: Tensor


@dataclass
class Placer:
    """Fuses objects into one scene, one after another.

    Attributes:
        space: The autoencoder.
        scene: The scene.
        settings: How.
        seed: Of the windows that are tried when reranking.
        scorer: Judges a picture (3,P,P) in [0,1] by words; needed for reranking.
        device: Where to compute.
        keep_free: (H,W) bool of the scene's size, where nothing should go.
        notes: What the user may want to know.
        placements: Where each object went.
    """

    space: LatentSpace
    scene: Scene
    settings: FusionSettings
    seed: int = 0
    scorer: Scorer | None = None
    device: torch.device | str = "cpu"
    keep_free: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)
    placements: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._canvas = self.scene.canvas
        self._kept_free: np.ndarray = np.zeros((self.space.grid, self.space.grid), bool)
        if self.keep_free is not None:
            self._kept_free = self._on_grid(self.keep_free.astype(np.float32)) > TAKEN

    def encode(self, canvas: Tensor) -> Tensor:
        """Features (C,G,G) of a canvas, on the CPU."""
        return self.space.encode(canvas[None].to(self.device))[0].cpu()

    def decode(self, features: Tensor) -> Tensor:
        """Picture (3,P,P) in [0,1] of features, on the CPU."""
        return self.space.decode(features[None].to(self.device))[0].clamp(0, 1).cpu()

    def run(self, objects: Sequence[FusionObject], found: Sequence[Found]) -> tuple[Tensor, Fused, Tensor]:
        """Fuse all objects.

        Returns:
            The scene's features, the fused scene, and the objects' own pixels (S,S) in [0,1].
        """
        base = self.encode(self.scene.canvas)
        nothing = torch.zeros(base.shape[-2:])
        fused, pixels = Fused(base, nothing, nothing), torch.zeros(self.scene.canvas.shape[-2:])
        order = sorted(range(len(objects)), key=lambda i: (objects[i].z_order, i))
        for i in order:
            fused, own = self._add(fused, objects[i], found[i], i)
            pixels = torch.maximum(pixels, own)
        return base, fused, pixels

    def _add(self, fused: Fused, thing: FusionObject, found: Found, number: int) -> tuple[Fused, Tensor]:
        heat = None if found.heat is None else self._on_grid(found.heat)
        if heat is not None and heat.max() < where.LEAST_HEAT:
            self.notes.append(f"{thing.name}: no {thing.phrase!r} was found in the scene; placed by its area alone")
        occupied = (fused.occupied > TAKEN).numpy() | self._kept_free
        sizes = [self._sized(found.cut, scale, fused.features) for scale in self._scales(thing, found)]
        first = [where.place(s.core, found.area, self.scene.valid, heat=heat, occupied=occupied) for s in sizes]
        chosen, window, scores = sizes[0], first[0].window, list[float]()
        if self.settings.rerank:
            chosen, window, scores = self._rerank(fused, thing, found.area, sizes, first, number)
        placed = chosen.place(window)
        self._canvas = placed.canvas
        layer = self._layer(chosen, window, placed.features, thing.alpha)
        cells = int((chosen.core & occupied[window.slices]).sum())
        if cells:
            self.notes.append(f"{thing.name}: no free place in its area; it overlaps {cells} cells that were taken")
        self.placements.append(
            {
                "object": number,
                "name": thing.name,
                "window": list(window),
                "cells": int(chosen.core.sum()),
                "scale": round(chosen.scale, 4),
                "overlap": cells,
                "found": bool(heat is not None and heat.max() >= where.LEAST_HEAT),
                **({"scores": [round(s, 5) for s in scores]} if scores else {}),
            }
        )
        kept = placed.pixels * (weight(layer, fused.occupied, self.settings.overlap_mode).max() > 0)
        return add_layer(fused, layer, self.settings.overlap_mode), kept

    def _on_grid(self, heat: np.ndarray) -> np.ndarray:
        side = self.scene.canvas.shape[-1]
        return F.avg_pool2d(letterboxed(torch.from_numpy(heat)[None], (side, side)), self.scene.cell)[0].numpy()

    def _scales(self, thing: FusionObject, found: Found) -> list[float]:
        factor = self.settings.global_scale
        if thing.use_adaptive_scale:
            factor *= thing.base_scale * where.adaptive_scale(
                found.heat, gamma=thing.gamma, eta=thing.eta, low=thing.min_scale, high=thing.max_scale
            )
            return [factor * s for s in (1.0, 0.9, 1.1)] if self.settings.rerank else [factor]
        if self.settings.rerank and thing.candidate_scales:
            return [factor * s for s in thing.candidate_scales]
        return [factor * thing.base_scale]

    def _layer(self, sized: Sized, window: Window, features: Tensor, opacity: float) -> Layer:
        core: np.ndarray = np.zeros(features.shape[-2:], bool)
        core[window.slices] = sized.core
        return Layer(features, opaque_alpha(core, self.settings.feather), opacity)

    def _sized(self, cut: CutOut, scale: float, below: Tensor) -> Sized:
        side, cell, valid = self.scene.canvas.shape[-1], self.scene.cell, self.scene.valid
        room = (valid.height * cell, valid.width * cell)
        height, width = target_size(cut, scale * max(self.scene.frame.height, self.scene.frame.width), room)
        if self.settings.scaling == "pixel":
            small = resized(cut, (height, width))
            # Painted on the scene, a cell at the edge has the scene's part in its features already.
            core = core_of(coverage(small.alpha, cell), 0.1 if self.settings.backdrop == "scene" else 0.5)
            return Sized(max(height, width) / side, core, lambda window: self._as_pixels(small, window))
        return self._as_features(cut, max(height, width) / side, below)

    def _as_pixels(self, small: CutOut, window: Window) -> Placed:
        """M1: the object is painted at its place and then encoded, so that features are those of its size."""
        cell, canvas = self.scene.cell, self._canvas
        origin = (
            window.top * cell + (window.height * cell - small.size[0]) // 2,
            window.left * cell + (window.width * cell - small.size[1]) // 2,
        )
        painted = paste(small, origin, backdrop_canvas(self.settings.backdrop, small, canvas))
        solid = CutOut(torch.ones_like(small.rgb), small.alpha)
        own = paste(solid, origin, torch.zeros_like(canvas))[0]
        return Placed(self.encode(painted), own, painted if self.settings.backdrop == "scene" else canvas)

    def _as_features(self, cut: CutOut, scale: float, below: Tensor) -> Sized:
        """M2: the object is encoded as large as it goes, and its features are shrunk."""
        side, cell = self.scene.canvas.shape[-1], self.scene.cell
        kind = "mean" if self.settings.backdrop == "scene" else self.settings.backdrop
        canvas, alpha = full_canvas(cut, side, backdrop_canvas(kind, cut, self.scene.canvas))
        scale = max(scale, 2 / self.space.grid)  # less than two cells would fall between the places that are read
        both = warp(torch.cat([self.encode(canvas), F.avg_pool2d(alpha, cell)]), scale)
        features, mask = both[:-1], both[-1]
        seen = (mask > min(TAKEN, 0.99 * float(mask.max()))).numpy()
        # Blurred by the warp it may take a cell more than it has; the picture may have no room for that.
        box = (_within(seen.any(1), self.scene.valid.height), _within(seen.any(0), self.scene.valid.width))
        patch, core = features[:, box[0], box[1]], core_of(mask[box])

        def place(window: Window) -> Placed:
            full, own = below.clone(), torch.zeros(below.shape[-2:])
            full[:, window.slices[0], window.slices[1]] = patch
            own[window.slices] = torch.from_numpy(core.astype(np.float32))
            return Placed(full, own.repeat_interleave(cell, 0).repeat_interleave(cell, 1), self._canvas)

        return Sized(scale, core, place)

    def _rerank(
        self,
        fused: Fused,
        thing: FusionObject,
        area: str,
        sizes: Sequence[Sized],
        first: Sequence[Placement],
        number: int,
    ) -> tuple[Sized, Window, list[float]]:
        if self.scorer is None:
            raise InputError("rerank: needs a CLIP model; give one")
        seed, scorer = self.seed if thing.seed is None else thing.seed, self.scorer
        generator = step_generator(seed, number, 1)
        tried: list[tuple[Sized, Window]] = []
        for sized, begun in zip(sizes, first, strict=True):
            near = where.candidates(
                begun.window,
                area,
                self.scene.valid,
                generator,
                count=thing.num_candidates,
                jitter=thing.jitter,
            )
            tried += [(sized, window) for window in near]
        words = " ".join(w for w in (thing.scene_prompt, thing.control_prompt or thing.text) if w)

        def layer(one: tuple[Sized, Window]) -> Layer:
            return self._layer(one[0], one[1], one[0].place(one[1]).features, thing.alpha)

        def overlap(one: tuple[Sized, Window]) -> float:
            weights = weight(self._layer(*one, fused.features, thing.alpha), fused.occupied, "allow")
            return float((weights * fused.occupied).mean())

        (sized, window), scores = where.rerank(
            tried,
            lambda one: self.decode(add_layer(fused, layer(one), self.settings.overlap_mode).features),
            lambda picture: scorer(picture, words),
            overlap,
            thing.lambda_overlap,
        )
        return sized, window, scores


def _within(seen: Any, most: int) -> slice:
    """The middle of a stretch of cells, at most so many."""
    found = np.flatnonzero(seen)
    first, count = int(found[0]), int(found[-1] - found[0] + 1)
    spare = max(0, count - most)
    return slice(first + spare // 2, first + spare // 2 + count - spare)
