"""Objects cut out of their pictures, and the phrases that say where they go found in the scene."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lit_insert.errors import InputError
from lit_insert.fusion.objects import FusionObject, FusionSettings
from lit_insert.fusion.relations import Location, beside, parse_location
from lit_insert.fusion.scaling import CutOut, cut_out
from lit_insert.images import as_pictures, flatten_alpha
from lit_insert.segmenters.base import Segmenter


@dataclass
class Found:
    """What the segmenter, or the user, says about an object.

    Attributes:
        cut: The object.
        heat: (H,W) of the scene's size, where its phrase points; None where no thing of the scene is named.
        area: Where it may go.
    """

    cut: CutOut
    heat: np.ndarray | None = None
    area: str = "anywhere"


def find_objects(
    scene: Image.Image,
    path: str,
    objects: Sequence[FusionObject],
    settings: FusionSettings,
    segmenter: Callable[[], Segmenter],
) -> tuple[list[Found], np.ndarray | None]:
    """Cut the objects out and look for their phrases, and for what is to be kept free, in the scene.

    Args:
        scene: The scene.
        path: Its file, by which masks of it are found.
        objects: The objects.
        settings: How.
        segmenter: Gives the segmenter; called only if it is needed.

    Returns:
        What was found for each object; and (H,W) bool, where nothing may go, or None.

    Raises:
        InputError: If an object cannot be told from its picture, or nothing of it is found.
    """
    found = [Found(_cut(thing, settings, segmenter), area=thing.area) for thing in objects]
    told = [parse_location(thing.phrase) if thing.phrase else Location() for thing in objects]
    for one, thing, location in zip(found, objects, told, strict=True):
        if location.area is not None and thing.target_area is None:
            one.area = location.area
    asked = list(dict.fromkeys(word for word in (*(t.thing for t in told), *settings.avoid) if word))
    if not asked:
        return found, None
    model = segmenter()
    features = model.encode(flatten_alpha(scene), name=Path(path).stem or None)
    heats = dict(zip(asked, model.heatmaps(features, asked).float().clamp(0, 1).numpy(), strict=True))
    for one, location in zip(found, told, strict=True):
        if location.thing is not None:
            one.heat = beside(heats[location.thing], location.relation)
    # A thing that something goes beside is no free place either.
    taken = [heats[w] for w in settings.avoid]
    taken += [heats[t.thing] for t in told if t.thing and t.relation != "on"]
    return found, np.max(taken, axis=0) > settings.threshold if taken else None


def _cut(thing: FusionObject, settings: FusionSettings, segmenter: Callable[[], Segmenter]) -> CutOut:
    picture = as_pictures(thing.path, thing.name, alpha=True)[0]
    if thing.mask is not None:
        given = thing.mask
        if isinstance(given, np.ndarray):
            return cut_out(picture, given.astype(np.float32), thing.name)
        grey = as_pictures(given, f"mask of {thing.name}")[0].convert("L")
        return cut_out(picture, np.asarray(grey, dtype=np.float32) / 255, thing.name)
    if picture.has_transparency_data:
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
        if (alpha < 255).any():
            return cut_out(picture, alpha.astype(np.float32) / 255, thing.name)
    if not thing.text:
        raise InputError(f"{thing.name}: no mask and no alpha; say what the object is (text)")
    model = segmenter()
    name = Path(thing.path).stem if isinstance(thing.path, str | Path) else None
    heat = model.heatmaps(model.encode(flatten_alpha(picture), name=name), [thing.text])[0].numpy()
    if not (heat > settings.threshold).any():
        raise InputError(
            f"{thing.name}: no {thing.text!r} was found in it (the mask is empty); give other words, a mask, or a "
            f"threshold below {float(heat.max()):.2f}"
        )
    return cut_out(picture, (heat > settings.threshold).astype(np.float32), thing.name)
