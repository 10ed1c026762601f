"""Training of the diffusion transformer by flow matching on the features of a frozen autoencoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lit_insert.artifacts.card import write_card
from lit_insert.errors import InputError
from lit_insert.fusion.latents import PART, LatentSpace, load_autoencoder
from lit_insert.fusion.loading import TRANSFORMER, load_transformer, write_index
from lit_insert.fusion.network import DiTDH
from lit_insert.fusion.objective import Velocity, flow_loss, guided, logit_normal, shift_of
from lit_insert.fusion.sampling import noise_levels, refine
from lit_insert.training.parameters import frozen
from lit_insert.training.shared import SharedDraws

_NOT_SAVED = ["optimizer", "lr_scheduler"]
_USE = (
    "from lit_insert import FusionObject, FusionPipeline",
    "",
    'pipe = FusionPipeline.from_pretrained("path/or/hub-id", segmenter="clipseg")',
    'thing = FusionObject("butterfly.png", "butterfly", location_prompt="on the flower")',
    'pipe("scene.png", [thing], strength=0.3).image.save("result.png")',
)


class DiTModule(SharedDraws):
    """Train a DiT^DH to bring noisy features back (Zheng et al. 2025).

    Times are logit-normal and moved towards noise by the size of the features.

    Args:
        autoencoder: The frozen autoencoder: a run, an exported folder, a hub id or "pocket".
        network: Arguments of `DiTDH`; grid, channels and classes are filled in. Null takes the network of ``init``.
        init: Where the weights start: a run, an exported folder or a hub id; null starts anew.
        num_classes: Number of classes that the pictures are labelled with; 0 ignores labels.
        label_dropout: Probability of training a sample as "no class".
        shift: a of the times; null takes √(C·H·W / 4096) of the features.
        latent_cache_mb: Megabytes of features that are kept, by picture, instead of being computed anew; only for
            pictures that are the same in every epoch. The loss is the same with and without.
        num_inference_steps: Steps of the pictures drawn while training.
        guidance_scale: Of these pictures; 1 for none.
        gradient_checkpointing: Trade time for memory.
        optimizer: Makes the optimiser from parameter groups.
        lr_scheduler: Makes the scheduler, stepped every optimiser step.
        noise_seed: Seed of noise, times and dropout.

    Raises:
        InputError: If there is neither a network nor an init, or they do not fit the features.
    """

    def __init__(
        self,
        autoencoder: str,
        network: dict[str, Any] | None = None,
        init: str | None = None,
        num_classes: int = 0,
        label_dropout: float = 0.1,
        shift: float | None = None,
        latent_cache_mb: float = 0.0,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        gradient_checkpointing: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, noise_seed)
        self.save_hyperparameters(ignore=_NOT_SAVED)
        if not 0 <= label_dropout <= 1:
            raise InputError(f"label_dropout is {label_dropout}; give 0 to 1")
        self.space = LatentSpace(load_autoencoder(autoencoder))
        frozen(self.space)
        channels, grid, _ = self.space.shape
        if init is not None:
            self.transformer = load_transformer(init)
            own = self.transformer.config
            wanted = {"in_channels": channels, "sample_size": grid, "num_classes": num_classes}
            for name, value in wanted.items():
                if own[name] != value:
                    raise InputError(f"init {init}: its {name} is {own[name]}, here it is {value}")
        elif network is not None:
            sizes = {"sample_size": grid, "in_channels": channels, "num_classes": num_classes}
            try:
                self.transformer = DiTDH(**{**sizes, **network})
            except TypeError as error:
                raise InputError(f"network: {error}") from error
        else:
            raise InputError("network is missing: give its arguments, or init to start from")
        self.transformer.train().requires_grad_(True)
        self.transformer.time_proj.requires_grad_(False)  # random frequencies, which stay as they were drawn
        self.num_classes, self.label_dropout = num_classes, label_dropout
        self.shift = shift_of(self.space.shape) if shift is None else shift
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        if gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        self._cache = FeatureMemory(latent_cache_mb)

    def setup(self, stage: str) -> None:
        """Compare the data with the model.

        Raises:
            InputError: If classes are too many or missing, or features are to be kept of pictures that change.
        """
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        count = getattr(data, "num_classes", None)
        if self.num_classes and count is not None and not 0 < count <= self.num_classes:
            raise InputError(f"num_classes is {self.num_classes}, but the data has {count or 'no'} classes")
        if self._cache.bytes and stage == "fit" and _changes(data):
            raise InputError(
                "latent_cache_mb: the data crops or flips at random; set random_crop and flip to false, or 0"
            )

    def features(self, batch: Mapping[str, Any]) -> Tensor:
        """Normalised features (N,C,G,G) of a batch's pictures, from memory where they are kept."""
        pictures, names = batch["image"], list(batch.get("id", ()))
        kept = [self._cache.kept.get(name) for name in names]
        if names and all(z is not None for z in kept):
            return torch.stack([z for z in kept if z is not None]).to(self.device)
        found = self.space.autoencoder.encode(self._unit(pictures)).latent.float()
        if self.training:
            self._cache.put(names, found)
        return found

    def _unit(self, pictures: Tensor) -> Tensor:
        sides = {self.space.input_size, self.space.output_size}
        if pictures.shape[-1] not in sides or pictures.shape[-2] not in sides:
            wanted = " or ".join(map(str, sorted(sides)))
            raise InputError(f"pictures are {pictures.shape[-1]}x{pictures.shape[-2]}; set data.image_size to {wanted}")
        return (pictures.float() + 1) / 2

    def _labels(self, batch: Mapping[str, Any]) -> Tensor:
        label = batch.get("label") if self.num_classes else None
        if label is None:
            return torch.full((len(batch["image"]),), self.num_classes, device=batch["image"].device)
        return label

    def compute_loss(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Squared error of the velocity at random times; some classes dropped in training."""
        draws = self.draws(batch, generator)
        with torch.no_grad():
            clean = self.features(batch)
        noise, time = draws.normal(*self.space.shape), logit_normal(draws.normal(), self.shift)
        label, drop = self._labels(batch), draws.uniform()
        if self.training:
            label = torch.where(drop < self.label_dropout, self.num_classes, label)
        return {"loss": flow_loss(self._velocity, clean, noise, time, label).mean()}

    def _velocity(self, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        return self.transformer(x, time, label, return_dict=False)[0]

    @torch.no_grad()
    def sample(self, noise: Tensor, label: Tensor | None, num_inference_steps: int | None = None) -> Tensor:
        """Pictures (N,3,P,P) in [0,1] from noise (N,C,G,G).

        Args:
            noise: Standard normal.
            label: Classes (N,), or None.
            num_inference_steps: Steps; those of the configuration by default.
        """
        velocity: Velocity = self._velocity
        if self.guidance_scale != 1 and label is not None:
            null = self.num_classes
            velocity = guided(velocity, velocity, self.guidance_scale, lambda c: torch.full_like(c, null))
        levels = noise_levels(1.0, num_inference_steps or self.num_inference_steps, self.shift)
        return self.space.decode(refine(velocity, noise, noise, levels, label=label)).clamp(0, 1)

    @torch.no_grad()
    def sample_grid(self, batch: Mapping[str, Any], generator: torch.Generator) -> list[list[Any]]:
        """Rows of a picture, its reconstruction, and a new one of its class."""
        noise = torch.randn(len(batch["image"]), *self.space.shape, generator=generator, device=generator.device)
        made = self.sample(noise.to(self.device), self._labels(batch))
        back = self.space.decode(self.features(batch)).clamp(0, 1)
        rows = zip(batch["image"], back * 2 - 1, made * 2 - 1, strict=True)
        return [list(row) for row in rows]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the fixed frequencies of the times, without which the rest means nothing."""
        kept = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("transformer.time_proj.")}
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"].update(kept)

    def export(self, folder: str | Path) -> None:
        """Write autoencoder and transformer as `FusionPipeline` reads them, and the card."""
        folder = Path(folder)
        self.space.autoencoder.save_pretrained(folder / PART)
        self.transformer.save_pretrained(folder / TRANSFORMER)
        write_index(folder, guide=False)
        run = Path(self.trainer.default_root_dir) if self._trainer is not None else None
        write_card(
            folder,
            name=f"Fusion, {self.space.output_size} pixels",
            summary="Puts objects into scenes in the feature space of an autoencoder, and makes them look natural.",
            run=run if run is not None and (run / "run.json").is_file() else None,
            use=_USE,
            tags=["object-insertion", "flow-matching"],
        )


class FeatureMemory:
    """Features by picture's name, until a number of bytes is used up.

    Args:
        megabytes: How many.
    """

    def __init__(self, megabytes: float) -> None:
        self.bytes = int(megabytes * 2**20)
        self.left = self.bytes
        self.kept: dict[str, Tensor] = {}

    def put(self, names: list[str], features: Tensor) -> None:
        """Keep what is new and fits."""
        size = features[0].numel() * features.element_size() if len(features) else 0
        for name, z in zip(names, features, strict=False):
            if name not in self.kept and size <= self.left:
                self.kept[name] = z.detach().cpu().clone()
                self.left -= size


def _changes(data: Any) -> bool:
    """Whether a data module shows a picture differently in every epoch."""
    source = getattr(data, "_sources", {}).get("train")
    return not getattr(source, "drawn", False) and bool(
        getattr(data, "flip", False) or getattr(data, "random_crop", False)
    )
