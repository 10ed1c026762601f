"""Making a folder of one picture with a mask for each instance: from scenes, painted layers or found objects."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from lit_insert.artifacts.atomic import atomic_folder
from lit_insert.data import world
from lit_insert.data.instance_folder import read_instances
from lit_insert.errors import InputError
from lit_insert.images import save_image, to_pil
from lit_insert.report import Report

_PLACES = 4


def parse_thing(text: str) -> tuple[int, int, int]:
    """(shape, colour, texture) of a phrase such as "a striped red circle".

    Raises:
        InputError: If a word is unknown, or there is no shape or colour.
    """
    found: dict[str, int] = {"texture": 0}
    for word in re.sub(r"^an? ", "", text.strip().lower()).split():
        names = (("shape", world.SHAPES), ("color", world.COLORS), ("texture", world.TEXTURES))
        kind = next((kind for kind, have in names if word in have), None)
        if kind is None:
            raise InputError(f"{text!r}: {word!r} is no shape, colour or texture of the world of scenes")
        found[kind] = dict(names)[kind].index(word)
    if not {"shape", "color"} <= found.keys():
        raise InputError(f"{text!r}: name a shape and a colour, such as 'striped red circle'")
    return found["shape"], found["color"], found["texture"]


def draw_scene(
    things: Sequence[tuple[int, int, int]], places: Sequence[int], *, index: int = 0, seed: int = 0, size: int = 32
) -> tuple[Image.Image, np.ndarray]:
    """A scene of the procedural world with given things at given places.

    Args:
        things: (shape, colour, texture) of each.
        places: 0 to 3 for each: top left, top right, bottom left, bottom right.
        index: Number of the scene; decides the backdrop and the rest.
        seed: World seed.
        size: Side in pixels.

    Returns:
        The picture, and masks uint8 (K,size,size) in {0,1}.

    Raises:
        InputError: If there are more things than places, or two at one.
    """
    if len(things) != len(places) or len(set(places)) < len(places) or not set(places) <= set(range(_PLACES)):
        raise InputError(f"{len(things)} things at places {list(places)}: give each its own place, 0 to 3")
    number = torch.tensor([index])
    scenes = world.lay_out(number, seed=seed, triples=world.combinations("train", 0.0))
    scenes.objects.label[0, list(places)] = torch.tensor(things)
    present = torch.zeros(1, _PLACES, dtype=torch.bool)
    present[0, list(places)] = True
    scenes.state = torch.where(present, world.OCCUPIED, world.ABSENT)
    rgb, coverage = world.draw_objects(scenes.objects, size)
    backdrop = world.draw_places(world.draw_background(scenes.background, size), scenes)
    image = world.compose(backdrop, rgb, coverage, present)[0]
    masks = (coverage[0, list(places), 0] >= 0.5).to(torch.uint8)
    return to_pil(image * 2 - 1), masks.numpy()


def painted_masks(layer: Image.Image, *, tolerance: int = 24, smallest: float = 0.0005) -> np.ndarray:
    """Masks from one painted picture: every colour but black is an instance, the largest first.

    Args:
        layer: The painting; transparent pixels count as black.
        tolerance: Largest channel difference within one colour, for soft brushes and JPEG.
        smallest: Colours that cover a smaller part are noise.

    Returns:
        uint8 (K,H,W) in {0,1}.

    Raises:
        InputError: If nothing is painted.
    """
    rgba = np.asarray(layer.convert("RGBA")).astype(np.int16)
    colours = np.where(rgba[..., 3:] >= 128, rgba[..., :3], 0)
    free = colours.max(-1) > tolerance
    masks = []
    while free.sum() > smallest * free.size:
        values, counts = np.unique(colours[free], axis=0, return_counts=True)
        near = free & (np.abs(colours - values[counts.argmax()]).max(-1) <= tolerance)
        masks.append(near)
        free = free & ~near
    kept = sorted((m for m in masks if m.sum() > smallest * m.size), key=lambda m: -int(m.sum()))
    if not kept:
        raise InputError("nothing is painted: give each instance a colour of its own, on black or transparent")
    return np.stack(kept).astype(np.uint8)


def split_mask(mask: np.ndarray, most: int = 8, smallest: float = 0.002) -> np.ndarray:
    """Connected parts of one mask (H,W), the largest first, uint8 (K,H,W).

    Raises:
        InputError: If nothing is left.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    chosen = [i + 1 for i in np.argsort(-areas, kind="stable")[:most] if areas[i] >= smallest * mask.size]
    if count < 2 or not chosen:
        raise InputError("the mask is empty: nothing was found in the picture")
    return np.stack([labels == i for i in chosen]).astype(np.uint8)


def write_instances(image: Image.Image, masks: np.ndarray, out: str | Path) -> list[str]:
    """Write the folder that `MaskedInstanceDataModule` reads, with ``index.html`` to look at; whole or not at all.

    Args:
        image: The picture.
        masks: uint8 (K,H,W) in {0,1}, of its size.
        out: The folder.

    Returns:
        Warnings of `read_instances`.

    Raises:
        InputError: As `read_instances`, or if ``out`` has other things in it.
    """
    out = Path(out)
    if out.is_dir() and any(out.iterdir()) and not (out / "mask0.png").is_file():
        raise InputError(f"{out}: is not empty and no folder of instances; choose another")
    with atomic_folder(out) as folder:
        save_image(image, folder / "img.png")
        for i, mask in enumerate(masks):
            save_image(Image.fromarray(mask * 255), folder / f"mask{i}.png")
        warnings = [w.replace(str(folder), str(out)) for w in _checked(folder, out)]
        write_page(folder, out.name)
    return warnings


def _checked(folder: Path, out: Path) -> list[str]:
    try:
        return read_instances(folder).warnings
    except InputError as error:
        raise InputError(str(error).replace(str(folder), str(out))) from error


def write_page(folder: str | Path, name: str = "") -> Path:
    """Write ``index.html``: the picture, each instance cut out, its size, and what is odd.

    Raises:
        InputError: As `read_instances`.
    """
    folder = Path(folder)
    found = read_instances(folder)
    page = Report(f"Instances of {name or folder.name}", f"{found.image.width}x{found.image.height} pixels")
    pixels = np.asarray(found.image)
    cut = [Image.fromarray(np.where(m[..., None] == 1, pixels, pixels // 5)) for m in found.masks]
    page.images([[found.image, *cut]], ["picture", *(f"<asset{i}>" for i in range(len(cut)))], cell_px=256)
    rows: list[list[Any]] = []
    for i, mask in enumerate(found.masks):
        ys, xs = np.nonzero(mask)
        rows.append([f"<asset{i}>", f"mask{i}.png", f"{mask.mean():.1%}", f"{np.ptp(xs) + 1}x{np.ptp(ys) + 1}"])
    page.heading("Sizes").table(["token", "file", "part of the picture", "box in pixels"], rows)
    page.heading("Warnings").text("\n\n".join(found.warnings) or "None.")
    return page.save(folder / "index.html")


def load_masks(paths: Sequence[str | Path]) -> np.ndarray:
    """Mask files, in the order given, uint8 (K,H,W) in {0,1}.

    Raises:
        InputError: If one cannot be read or the sizes differ.
    """
    from lit_insert.data.loading import BrokenSample
    from lit_insert.data.mask_folder import read_mask

    try:
        masks = [read_mask(Path(p)) for p in paths]
    except BrokenSample as error:
        raise InputError(str(error)) from error
    odd = next((p for p, m in zip(paths, masks, strict=True) if m.shape != masks[0].shape), None)
    if odd is not None:
        raise InputError(f"{odd}: its size differs from {paths[0]}'s")
    return np.stack(masks)
