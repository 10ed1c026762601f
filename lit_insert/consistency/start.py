"""Where a network's training starts: the weights of a run, a checkpoint, an exported folder or a published model."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import CMStochasticIterativeScheduler, UNet2DModel

from lit_insert.artifacts.resolve import INDEX, resolve_model
from lit_insert.artifacts.weights import load_component, load_onto, read_torch, trained_weights
from lit_insert.consistency.karras import NoiseRange
from lit_insert.consistency.sampling import GRID
from lit_insert.consistency.sources import ModelFacts, load_folder
from lit_insert.errors import InputError

CHECKPOINT_KEY = "consistency"
_NOISE = ("sigma_min", "sigma_max", "rho", "sigma_data")


class Start(NamedTuple):
    """A network (float32, eval mode), its noise levels, what it is, and on how many levels its steps are laid out."""

    unet: UNet2DModel
    noise: NoiseRange
    facts: ModelFacts
    grid: int = GRID

    @property
    def num_classes(self) -> int | None:
        """Classes without the one for "no label"; None where there are none."""
        embeddings = self.unet.config["num_class_embeds"]
        return embeddings - (self.facts.null_label is not None) if embeddings else None


def load_start(source: str | Path) -> Start:
    """The generator that a name stands for.

    Args:
        source: A run, ``.ckpt``, exported folder, folder of a diffusers UNet2DModel (taken for a diffusion model), hub
            id, "pocket" (the few-step generator) or "pocket:generate_teacher" (the diffusion model).

    Raises:
        InputError: If there is none, or it is broken; names the source.
    """
    found = resolve_model(source, "generate")
    if found.kind == "checkpoint":
        return _from_checkpoint(found.path)
    if found.kind == "folder" and not (found.path / INDEX).is_file():
        folder = found.path.resolve()
        return Start(load_component(UNet2DModel, folder.parent, folder.name), NoiseRange(), ModelFacts(kind="edm"))
    unet, scheduler, facts = load_folder(found, torch.float32, {})
    noise = NoiseRange(**{k: scheduler.config[k] for k in _NOISE})
    return Start(unet, noise, facts, scheduler.config["num_train_timesteps"])


def scheduler_for(noise: NoiseRange, grid: int = GRID) -> CMStochasticIterativeScheduler:
    """Diffusers' sampler of the exported folder, its steps laid out on a grid of so many levels."""
    return CMStochasticIterativeScheduler(num_train_timesteps=grid, **dataclasses.asdict(noise))


def checkpoint_entry(start: Start) -> dict[str, Any]:
    """What `load_start` needs from a training checkpoint besides its weights, as plain data."""
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in start.unet.config.items() if not k.startswith("_")}
    noise, facts = dataclasses.asdict(start.noise), dataclasses.asdict(start.facts)
    return {"unet": config, "noise": noise, "facts": facts, "grid": start.grid}


def _from_checkpoint(path: Path) -> Start:
    checkpoint = read_torch(path)
    entry = checkpoint.get(CHECKPOINT_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(entry, dict):
        raise InputError(f"{path}: not a checkpoint of a diffusion teacher or a consistency model")
    unet = UNet2DModel.from_config(entry["unet"])
    state = trained_weights(checkpoint, str(path))
    weights = {k.removeprefix("unet."): v for k, v in state.items() if k.startswith("unet.")}
    load_onto(unet, weights, str(path), need=set(unet.state_dict()))
    noise, facts = NoiseRange(**entry["noise"]), ModelFacts(**entry["facts"])
    return Start(unet.eval(), noise, facts, entry.get("grid", GRID))
