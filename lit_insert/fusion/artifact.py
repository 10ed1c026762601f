"""What the first stage leaves for the second: fused features in safetensors, everything else in JSON beside them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.artifacts.json_file import read_object
from lit_insert.artifacts.weights import check_safetensors, read_torch
from lit_insert.errors import InputError
from lit_insert.letterbox import Frame

SCHEMA = 1
_ORIGINAL = ("fused_features", "union_mask")


@dataclass
class FusionArtifact:
    """A scene with objects fused into it, before the flow.

    Attributes:
        fused: (C,G,G) float32, normalised features.
        base: The scene's own, the same shape. None in files of the original program; the scene is then encoded anew.
        union: (G,G) in [0,1], what is new.
        objects: (S,S) in [0,1], the objects' own pixels on the encoder's canvas. None in files of the original
            program; what is new in the features then stands for them.
        scene: Path of the scene, or "" if it was no file.
        frame: Where it lies on the canvas. None: it fills the canvas, its aspect lost, as in the original program.
        size: (height, width) of the scene. None in files of the original program.
        autoencoder: Name of the space that the features live in. None if not known.
        seed: Of the noise.
        notes: What the user may want to know.
        placements: Where each object went, plain values.
    """

    fused: Tensor
    base: Tensor | None
    union: Tensor
    objects: Tensor | None = None
    scene: str = ""
    frame: Frame | None = None
    size: tuple[int, int] | None = None
    autoencoder: str | None = None
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    placements: list[dict[str, Any]] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, G, G) of the features."""
        channels, height, width = self.fused.shape
        return channels, height, width

    def save(self, path: str | Path) -> Path:
        """Write ``path`` (.safetensors) and a .json of the same name; the same content is the same bytes.

        Returns:
            The path of the safetensors.
        """
        path = Path(path).with_suffix(".safetensors")
        tensors = {"fused": self.fused, "base": self.base, "union": self.union, "objects": self.objects}
        about = {
            "schema_version": SCHEMA,
            "kind": "lit_insert fusion, stage 1",
            "scene": self.scene,
            "frame": None if self.frame is None else list(self.frame),
            "size": None if self.size is None else list(self.size),
            "autoencoder": self.autoencoder,
            "grid": list(self.shape),
            "seed": self.seed,
            "placements": self.placements,
            "notes": self.notes,
        }
        with atomic_file(path) as temporary:
            save_file({k: v.contiguous() for k, v in tensors.items() if v is not None}, temporary)
        with atomic_file(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> "FusionArtifact":
        """Read an artifact, or a ``.pt`` of the original program; nothing in it is run.

        Raises:
            InputError: If it is missing, broken, of a later version, or its parts do not fit; names it.
        """
        path = Path(path)
        if path.suffix == ".pt":
            return _original(path)
        if path.suffix == ".json":
            path = path.with_suffix(".safetensors")
        check_safetensors(path)
        about = read_object(path.with_suffix(".json"))
        version = about.get("schema_version")
        if not isinstance(version, int) or version > SCHEMA:
            raise InputError(f"{path}: schema_version {version!r} is not known here; the last known is {SCHEMA}")
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
        if not {"fused", "base", "union"} <= tensors.keys():
            raise InputError(f"{path}: not an artifact of the first stage (it has {', '.join(sorted(tensors))})")
        made = cls(
            **{k: tensors.get(k) for k in ("fused", "base", "union", "objects")},  # type: ignore[arg-type]
            scene=str(about.get("scene") or ""),
            frame=None if about.get("frame") is None else Frame(*about["frame"]),
            size=None if about.get("size") is None else (about["size"][0], about["size"][1]),
            autoencoder=about.get("autoencoder"),
            seed=int(about.get("seed", 0)),
            notes=list(about.get("notes", [])),
            placements=list(about.get("placements", [])),
        )
        made.check(str(path))
        return made

    def check(self, origin: str) -> None:
        """Raise `InputError` if the parts do not fit each other."""
        if self.fused.ndim != 3 or self.fused.shape[1] != self.fused.shape[2]:
            raise InputError(f"{origin}: features of shape {tuple(self.fused.shape)}; expected (C, G, G)")
        if self.base is not None and self.base.shape != self.fused.shape:
            raise InputError(
                f"{origin}: the scene's features are {tuple(self.base.shape)}, the fused ones {self.shape}"
            )
        if self.union.shape != self.fused.shape[1:]:
            raise InputError(f"{origin}: the mask is {tuple(self.union.shape)} for a grid of {self.shape[1:]}")
        if not torch.isfinite(self.fused).all():
            raise InputError(f"{origin}: the features are not all finite")

    def check_space(self, name: str, shape: tuple[int, int, int], origin: str = "the artifact") -> None:
        """Compare with the autoencoder that is to decode it.

        Raises:
            InputError: If the features are of another space or grid.
        """
        if self.shape != shape or self.autoencoder not in (None, name):
            own = f"{self.autoencoder or 'features'} {'x'.join(map(str, self.shape))}"
            raise InputError(f"{origin}: made with {own}; the model here is {name} {'x'.join(map(str, shape))}")


def _original(path: Path) -> FusionArtifact:
    """A ``.pt`` of the original program: features [1,C,G,G], masks [1,1,G,G], and the scene's path."""
    found = read_torch(path)
    lacking = [k for k in _ORIGINAL if not isinstance(found, dict) or not isinstance(found.get(k), Tensor)]
    if lacking:
        raise InputError(f"{path}: no tensor {lacking[0]!r}; not a result of the original program's first stage")
    fused, union = found["fused_features"].float(), found["union_mask"].float()
    if fused.ndim != 4 or len(fused) != 1 or union.shape != (1, 1, *fused.shape[2:]):
        raise InputError(f"{path}: features {tuple(fused.shape)} and mask {tuple(union.shape)} do not fit each other")
    objects = found.get("objects_info") or []
    made = FusionArtifact(
        fused=fused[0],
        base=None,
        union=union[0, 0].clamp(0, 1),
        scene=str(found.get("base_image") or ""),
        placements=[dict(o) for o in objects if isinstance(o, dict)],
    )
    made.check(str(path))
    return made
