"""All settings of the room, from a YAML file, checked key by key."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

from lit_insert.errors import InputError
from lit_insert.grounding.filter import EXCLUDED, QUALIFIERS


@dataclass
class EntitySettings:
    """What the prompt names.

    Args:
        backend: qwen3-vl, noun-phrases or given.
        model: Its weights: a folder or a hub id.
        dtype: Of the weights: auto, float32, float16 or bfloat16.
        max_new_tokens: Longest answer.
        constrain: Let the model write nothing but a JSON list; slow with a large vocabulary.
        most: Longest list of labels.
        excluded: Terms that name no thing.
        qualifiers: Words that do not make a thing of an excluded term.
    """

    backend: str = "qwen3-vl"
    model: str = "Qwen/Qwen3-VL-8B-Instruct"
    dtype: str = "auto"
    max_new_tokens: int = 512
    constrain: bool = False
    most: int = 32
    excluded: list[str] = field(default_factory=lambda: list(EXCLUDED))
    qualifiers: list[str] = field(default_factory=lambda: list(QUALIFIERS))


@dataclass
class SegmenterSettings:
    """What finds their instances.

    Args:
        backend: sam3, clipseg, pocket or given.
        model: Its weights: a folder or a hub id, by default the backend's published ones; for given the folder of
            masks.
        dtype: Of the weights: auto, float32, float16 or bfloat16.
        threshold: Things with a score above it are kept.
        mask_threshold: A pixel is inside where its probability is above it.
        max_instances: Most things of one label in a picture.
        min_area: Drop smaller things: below 1 a fraction of the picture, from 1 on pixels.
        chunk: Labels that go through the network at once.
    """

    backend: str = "sam3"
    model: str = ""
    dtype: str = "auto"
    threshold: float = 0.5
    mask_threshold: float = 0.5
    max_instances: int = 100
    min_area: float = 0.0
    chunk: int = 4


@dataclass
class NmsSettings:
    """What counts as the same thing found twice.

    Args:
        iou: Smallest intersection over union of duplicates; above 1 for never.
        containment: Smallest share of the smaller mask inside the larger; above 1 for never.
        part: A mask inside one of another label stays if its area is below this share of the other's.
    """

    iou: float = 0.7
    containment: float = 0.9
    part: float = 0.5


@dataclass
class VerifySettings:
    """Have the language model look at each thing that was found.

    Args:
        enabled: Ask, and drop what is denied.
        model: The weights: a folder or a hub id of a Qwen3-VL.
        margin: Room around the thing in the cut-out, of its longer side.
    """

    enabled: bool = False
    model: str = "Qwen/Qwen3-VL-8B-Instruct"
    margin: float = 0.25


@dataclass
class EmbedderSettings:
    """What makes the vectors by which things are known again.

    Args:
        backend: dinov3, dinov2, clip or pocket.
        model: Its weights: a folder or a hub id; by default the backend's published ones.
        dtype: Of the weights: auto, float32, float16 or bfloat16.
        image_size: Longer side that pictures are brought to, in pixels; dinov3 and dinov2 only.
        crop_size: Side of cut-outs of small things; dinov3 and dinov2 only.
        min_patches: Things with fewer patches are cut out; dinov3 and dinov2 only.
    """

    backend: str = "dinov3"
    model: str = ""
    dtype: str = "float32"
    image_size: int = 512
    crop_size: int = 224
    min_patches: int = 4


@dataclass
class PairingSettings:
    """Which source object became which.

    Args:
        threshold: Smallest cosine of a match.
        labels: same, first (same labels first, then any) or any.
    """

    threshold: float = 0.5
    labels: str = "first"


@dataclass
class OutputSettings:
    """What is written.

    Args:
        format: coco, or legacy for the layout of the original.
        annotated: Write each picture with its masks.
        annotated_dir: Folder for those, below the output folder.
        report: Write the HTML page.
        exports: Further files: coco-results, label-map, yolo-seg.
    """

    format: str = "coco"
    annotated: bool = False
    annotated_dir: str = "annotated"
    report: bool = True
    exports: list[str] = field(default_factory=list)


@dataclass
class GroundingSettings:
    """Everything; each part is a section of the YAML file.

    Args:
        device: auto, cpu, cuda, cuda:1, mps.
        entities: What the prompt names.
        segmenter: What finds it.
        nms: What counts as found twice.
        verify: The language model's second look.
        embedder: What makes vectors.
        pairing: What matches.
        output: What is written.
    """

    device: str = "auto"
    entities: EntitySettings = field(default_factory=EntitySettings)
    segmenter: SegmenterSettings = field(default_factory=SegmenterSettings)
    nms: NmsSettings = field(default_factory=NmsSettings)
    verify: VerifySettings = field(default_factory=VerifySettings)
    embedder: EmbedderSettings = field(default_factory=EmbedderSettings)
    pairing: PairingSettings = field(default_factory=PairingSettings)
    output: OutputSettings = field(default_factory=OutputSettings)

    def check(self) -> "GroundingSettings":
        """Refuse values out of range; returns the settings.

        Raises:
            InputError: Naming the key.
        """
        dtypes = ("auto", "float32", "float16", "bfloat16")
        one_of = {
            "entities.backend": ("qwen3-vl", "noun-phrases", "given"),
            "segmenter.backend": ("sam3", "clipseg", "pocket", "given"),
            "embedder.backend": ("dinov3", "dinov2", "clip", "pocket"),
            "pairing.labels": ("same", "first", "any"),
            "output.format": ("coco", "legacy"),
            **{f"{part}.dtype": dtypes for part in ("entities", "segmenter", "embedder")},
        }
        for key, choices in one_of.items():
            if self[key] not in choices:
                raise InputError(f"{key} is {self[key]!r}; give one of {', '.join(choices)}")
        for name in self.output.exports:
            if name not in ("coco-results", "label-map", "yolo-seg"):
                raise InputError(f"output.exports has {name!r}; it knows coco-results, label-map, yolo-seg")
        ranges: dict[str, tuple[float, float]] = {
            "segmenter.threshold": (0, 0.999999),
            "segmenter.mask_threshold": (0, 0.999999),
            "pairing.threshold": (-1, 1),
            "verify.margin": (0, 10),
            "segmenter.min_area": (0, 1e12),
            **{f"nms.{name}": (0, 2) for name in ("iou", "containment", "part")},
            **dict.fromkeys(("entities.max_new_tokens", "entities.most", "segmenter.max_instances"), (1, 1000000000.0)),
            **dict.fromkeys(("segmenter.chunk", "embedder.image_size", "embedder.crop_size"), (1, 1000000000.0)),
            "embedder.min_patches": (1, 1e9),
        }
        for key, (least, most) in ranges.items():
            if not least <= self[key] <= most:
                raise InputError(f"{key} is {self[key]:g}; give a number from {least:g} to {most:g}")
        return self

    def __getitem__(self, key: str) -> Any:
        """A value by its dotted name, such as "nms.iou"."""
        value: Any = self
        for name in key.split("."):
            value = getattr(value, name)
        return value

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as a YAML file would have them."""
        return dataclasses.asdict(self)


def settings_from(*layers: Mapping[str, Any], origins: tuple[str, ...] = ()) -> GroundingSettings:
    """Settings of several sources; a later one overrides those before it.

    Args:
        *layers: Nested mappings, such as a YAML file's, then the command line's.
        origins: Their names, for messages.

    Raises:
        InputError: If a key is unknown or a value is of the wrong kind or out of range; names the key.
    """
    settings = GroundingSettings()
    for i, layer in enumerate(layers):
        _fill(settings, layer, "", origins[i] if i < len(origins) else "settings")
    return settings.check()


def _fill(target: Any, values: Mapping[str, Any], above: str, origin: str) -> None:
    kinds = get_type_hints(type(target))
    for name, value in values.items():
        key = f"{above}{name}"
        if name not in kinds:
            near = difflib.get_close_matches(str(name), kinds, n=1)
            hint = f"did you mean {above}{near[0]}?" if near else f"it knows {', '.join(above + k for k in kinds)}"
            raise InputError(f"{origin}: unknown key {key!r}; {hint}")
        if dataclasses.is_dataclass(kinds[name]):
            if not isinstance(value, Mapping):
                raise InputError(f"{origin}: {key} is {value!r}; it is a section with keys of its own")
            _fill(getattr(target, name), value, f"{key}.", origin)
        else:
            setattr(target, name, _checked(value, kinds[name], key, origin))


def _checked(value: Any, kind: Any, key: str, origin: str) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        if isinstance(value, list) and all(isinstance(v, item) for v in value):
            return list(value)
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    raise InputError(f"{origin}: {key} is {value!r}; give {names.get(kind, 'a list of texts')}")
