"""The exported folder of a generator: diffusers' layout, and in its index what diffusers has no place for."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel

from lit_insert.artifacts.hub import pull_model
from lit_insert.artifacts.json_file import forget_paths, read_object, write_object
from lit_insert.artifacts.resolve import INDEX, Source
from lit_insert.artifacts.weights import load_component
from lit_insert.errors import InputError

KINDS = ("consistency", "edm")
_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_LAYOUT = {"unet": "UNet2DModel", "scheduler": "CMStochasticIterativeScheduler"}


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What a model is beside its network; kept in ``model_index.json`` where it differs from the default.

    Attributes:
        kind: "consistency", sampled in a few steps, or "edm", a diffusion model sampled by Heun's method.
        labels: Classes that were trained; None for all that the network has an embedding for.
        null_label: The class that stands for none, which guidance needs; None if there is no such.
        sigmas: The model's own noise levels by number of steps as text, such as ``{"2": [80.0, 0.8]}``.
    """

    kind: Literal["consistency", "edm"] = "consistency"
    labels: list[int] | None = None
    null_label: int | None = None
    sigmas: dict[str, list[float]] | None = None

    def check(self, unet: UNet2DModel, origin: str) -> None:
        """Raise `InputError` if the network cannot be what this says."""
        if self.kind not in KINDS:
            raise InputError(f"{origin}: kind is {self.kind!r}; give {' or '.join(KINDS)}")
        classes = unet.config["num_class_embeds"] or 0
        for label in [*(self.labels or ()), *([] if self.null_label is None else [self.null_label])]:
            if not 0 <= label < classes:
                raise InputError(f"{origin}: label {label} is outside the network's {classes} classes")

    def changed(self) -> dict[str, Any]:
        """What differs from the default, as plain data."""
        default = ModelFacts()
        return {k: v for k, v in dataclasses.asdict(self).items() if v != getattr(default, k)}


def load_folder(
    source: Source, dtype: torch.dtype, given: Mapping[str, Any]
) -> tuple[UNet2DModel, CMStochasticIterativeScheduler, ModelFacts]:
    """Network, scheduler and facts of a folder in the layout of diffusers' ``ConsistencyModelPipeline``.

    Args:
        source: Of kind "folder" or "hub".
        dtype: Of the weights.
        given: Keyword arguments of ``from_pretrained``: ``variant`` and the hub's.

    Raises:
        InputError: If it is another kind of model, or a part is missing, truncated or incomplete.
    """
    unknown = sorted(set(given) - {*_HUB, "variant"})
    if unknown:
        raise InputError(f"from_pretrained has no option {unknown[0]!r}; it has dtype, variant, {', '.join(_HUB)}")
    folder = source.path
    if source.kind == "hub":
        options = {k: given[k] for k in _HUB if k in given}
        folder = pull_model(source.location, **options)
        if not any((folder / "unet").glob("*.safetensors")):  # early models have pickles only; read as plain tensors
            folder = pull_model(source.location, also=("unet/*.bin",), **options)
    index = read_object(folder / INDEX)
    for part, expected in _LAYOUT.items():
        found = index.get(part)
        if not isinstance(found, list) or found[-1] != expected:
            what = found[-1] if isinstance(found, list) and found else "not there"
            raise InputError(f"{source.name}: not a consistency model: its {part} is {what}, not {expected}")
    config = read_object(folder / "scheduler" / "scheduler_config.json")
    unet = load_component(UNet2DModel, folder, "unet", dtype=dtype, variant=given.get("variant"))
    names = {f.name for f in dataclasses.fields(ModelFacts)}
    facts = ModelFacts(**{k: v for k, v in index.items() if k in names})
    facts.check(unet, str(folder / INDEX))
    return unet, CMStochasticIterativeScheduler.from_config(config), facts


def save_folder(
    folder: Path, unet: UNet2DModel, scheduler: CMStochasticIterativeScheduler, facts: ModelFacts, **kwargs: Any
) -> None:
    """Write diffusers' layout, which ``ConsistencyModelPipeline.from_pretrained`` reads as it is.

    Args:
        folder: Where to; made if need be.
        unet: The network.
        scheduler: Noise range and grid.
        facts: What else there is to know.
        **kwargs: diffusers', such as ``variant``.
    """
    ConsistencyModelPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder, **kwargs)
    forget_paths(folder)
    write_object(folder / INDEX, {**read_object(folder / INDEX), **facts.changed()})
