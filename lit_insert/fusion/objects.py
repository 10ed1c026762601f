"""What a user says about an object and about a fusion, checked."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lit_insert.errors import InputError
from lit_insert.fusion.choices import BACKDROPS, OVERLAPS, SCALINGS, Backdrop, Overlap, Scaling, check_area


@dataclass(frozen=True)
class FusionObject:
    """An object to put into a scene.

    Attributes:
        path: Its picture: a file, a PIL picture or a tensor.
        text: What it is, in words; cuts it out of its picture, unless the picture has alpha or there is a mask.
        mask: White where it is: a file, a PIL picture or an array (H,W) in [0,1].
        target_area: Where it may go, see `lit_insert.fusion.choices.AREAS`. None: "anywhere" with a
            ``location_prompt``, else "center".
        location_prompt: Where it goes, in words: "on the flower", "right of the blue ring", "bottom left"; see
            `lit_insert.fusion.relations.parse_location`.
        base_scale: Its size, times the settings' ``global_scale``: longer side over the scene's.
        use_smart: Follow ``location_prompt``; if not, only ``target_area`` counts.
        z_order: Objects of lower order are painted first.
        alpha: Its opacity in the feature map, in [0,1].
        use_adaptive_scale: Size it by the room that the phrase's region has, see
            `lit_insert.fusion.placement.adaptive_scale`; both scales above are factors on that.
        gamma: γ of it.
        eta: η of it.
        min_scale: Smallest that it gives.
        max_scale: Largest that it gives.
        candidate_scales: Sizes to choose from when reranking, each times ``global_scale``; none: the one size.
        num_candidates: Windows that are drawn when reranking.
        jitter: How far they lie from the first at most, as a fraction of the scene.
        lambda_overlap: What overlap costs when reranking.
        scene_prompt: Words for the scene when reranking.
        control_prompt: Words for the object when reranking; "" for ``text``.
        seed: Of the windows drawn; None: the fusion's, so that objects' numbers differ by their place in the list.
    """

    path: Any
    text: str = ""
    mask: Any = None
    target_area: str | None = None
    location_prompt: str | None = None
    base_scale: float = 1.0
    use_smart: bool = True
    z_order: int = 0
    alpha: float = 1.0
    use_adaptive_scale: bool = False
    gamma: float = 0.5
    eta: float = 0.9
    min_scale: float = 0.2
    max_scale: float = 0.8
    candidate_scales: tuple[float, ...] = ()
    num_candidates: int = 12
    jitter: float = 0.12
    lambda_overlap: float = 0.3
    scene_prompt: str = ""
    control_prompt: str = ""
    seed: int | None = None

    def __post_init__(self) -> None:
        name = self.name
        if self.target_area is not None:
            try:
                check_area(self.target_area)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
        for key, low, high in (
            ("base_scale", 0.01, 4.0),
            ("alpha", 0.0, 1.0),
            ("gamma", 0.0, 10.0),
            ("eta", 0.0, 10.0),
            ("min_scale", 0.01, 1.0),
            ("max_scale", 0.01, 1.0),
            ("jitter", 0.0, 1.0),
            ("lambda_overlap", 0.0, 1000.0),
        ):
            _within(f"{name}: {key}", getattr(self, key), low, high)
        if self.min_scale > self.max_scale:
            raise InputError(f"{name}: min_scale {self.min_scale:g} is over max_scale {self.max_scale:g}")
        if self.num_candidates < 1:
            raise InputError(f"{name}: num_candidates is {self.num_candidates}; give 1 or more")
        for scale in self.candidate_scales:
            _within(f"{name}: candidate_scales", scale, 0.01, 4.0)

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return str(self.path) if isinstance(self.path, str | Path) else self.text or "object"

    @property
    def phrase(self) -> str | None:
        """The location prompt, if it is to be followed."""
        return self.location_prompt if self.use_smart and self.location_prompt else None

    @property
    def area(self) -> str:
        """The area, settled."""
        return self.target_area or ("anywhere" if self.phrase else "center")

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], origin: str, folder: Path | None = None) -> Self:
        """An object of a JSON dictionary.

        Args:
            given: The keys above; ``path`` is required.
            origin: File and number, for messages.
            folder: What relative paths are relative to, where they do not exist as they are.

        Raises:
            InputError: If a key is missing, unknown or of the wrong kind.
        """
        if not isinstance(given, Mapping):
            raise InputError(f"{origin}: must be an object with keys, not {type(given).__name__}")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(given) - set(fields))
        if unknown:
            raise InputError(f"{origin}: no key is called {unknown[0]!r}; there are {', '.join(fields)}")
        if not given.get("path"):
            raise InputError(f"{origin}: the key 'path' is missing; give the object's picture")
        values = {k: _typed(fields[k].default, given[k], f"{origin}: {k}") for k in given if given[k] is not None}
        for key in ("path", "mask"):
            if key in values:
                values[key] = _found(str(values[key]), folder)
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; pictures that are no files are left out."""
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        kept["candidate_scales"] = list(self.candidate_scales)
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in kept.items()}
        return {k: v for k, v in plain.items() if v is None or isinstance(v, str | int | float | bool | list)}


def read_objects(path: str | Path) -> list[FusionObject]:
    """The objects of a JSON file: a list of dictionaries, or one.

    Raises:
        InputError: If the file is missing or broken, or a key is wrong; names it.
    """
    path = Path(path)
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable JSON ({error})") from error
    given = [given] if isinstance(given, dict) else given
    if not isinstance(given, list) or not given:
        raise InputError(f"{path}: must be a list of objects")
    return [FusionObject.from_dict(g, f"{path}, object {i}", path.parent) for i, g in enumerate(given)]


@dataclass(frozen=True)
class FusionSettings:
    """How to fuse; everything has a default.

    Attributes:
        global_scale: Factor on every object's ``base_scale``: size of an object of scale 1, longer side over the
            scene's.
        overlap_mode: "allow", "no_overwrite" or "alpha", see `lit_insert.fusion.compose.weight`.
        scaling: Bring objects to size as pixels, before they are encoded ("pixel", M1), or as features after it
            ("latent", M2, as the original does).
        backdrop: What the encoder sees around an object: "scene", "mean", "edge" or "black". With M2, where the
            object is encoded large, "scene" counts as "mean".
        feather: Cells outside an object over which its weight in the feature map falls.
        grow: Cells around what is new that the flow may change too.
        threshold: A pixel is the object's where the segmenter is surer than this.
        avoid: Words for what nothing should cover, such as ("person",).
        rerank: Try several windows and keep the one whose picture a CLIP model likes best.
    """

    global_scale: float = 0.6
    overlap_mode: Overlap = "allow"
    scaling: Scaling = "pixel"
    backdrop: Backdrop = "scene"
    feather: int = 1
    grow: int = 0
    threshold: float = 0.3
    avoid: tuple[str, ...] = ()
    rerank: bool = False

    def __post_init__(self) -> None:
        _within("global_scale", self.global_scale, 0.01, 4.0)
        _within("threshold", self.threshold, 0.0, 0.999)
        for name, known in (("overlap_mode", OVERLAPS), ("scaling", SCALINGS), ("backdrop", BACKDROPS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} {getattr(self, name)!r}: unknown; give {', '.join(known)}")
        for name in ("feather", "grow"):
            _within(name, getattr(self, name), 0, 16)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value) or not low <= value <= high:
        raise InputError(f"{name} is {value:g}; give {low:g} to {high:g}")


def _typed(default: Any, value: Any, name: str) -> Any:
    """A JSON value of the kind that a field's default has."""
    if isinstance(default, bool):
        wanted, good = "true or false", isinstance(value, bool)
    elif isinstance(default, tuple):
        wanted = "a list of numbers"
        good = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        value = tuple(value) if good else value
    elif isinstance(default, int):
        wanted, good = "a whole number", isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(default, float):
        wanted, good = "a number", isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if good else value
    elif name.endswith(": seed"):
        wanted, good = "a whole number", isinstance(value, int) and not isinstance(value, bool)
    else:
        wanted, good = "a text", isinstance(value, str)
    if not good:
        raise InputError(f"{name}: expected {wanted}, got {value!r}")
    return value


def _found(path: str, folder: Path | None) -> str:
    if folder is None or Path(path).exists() or not (folder / path).exists():
        return path
    return str(folder / path)
