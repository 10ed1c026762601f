"""What the training of teachers and of consistency models shares."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from lit_insert.artifacts.card import write_card
from lit_insert.consistency.karras import NoiseRange
from lit_insert.consistency.network import build_unet, checked_labels, copy_all_but_classes
from lit_insert.consistency.sampling import GRID
from lit_insert.consistency.sources import ModelFacts, save_folder
from lit_insert.consistency.start import CHECKPOINT_KEY, Start, checkpoint_entry, load_start, scheduler_for
from lit_insert.diffusion.noise import Draws
from lit_insert.errors import InputError
from lit_insert.training.shared import SharedDraws

_USE = (
    "from lit_insert import ConsistencyPipeline",
    "",
    'pipe = ConsistencyPipeline.from_pretrained("path/or/hub-id")',
    'pipe(num_images=1, seed=0).images[0].save("picture.png")',
)
_TITLES = {
    "edm": "Diffusion model",
    "cd": "Consistency model, distilled",
    "ct": "Consistency model, trained from data",
    "ict": "Consistency model, improved training from data",
    "ect": "Consistency model, tuned from a diffusion model",
}


class GeneratorModule(SharedDraws):
    """What teachers and consistency models share: the network, classes, noise, export.

    Args:
        network: Arguments of `build_unet`; null takes the network of ``init``.
        init: Where the weights start: a run, checkpoint, exported or diffusers folder, or hub id; null starts anew.
        num_classes: Number of classes that the pictures are labelled with; null ignores labels, or takes those of
            ``init``.
        label_dropout: Probability of training a sample as "no label", which guidance needs.
        noise: Range of noise levels; null takes that of ``init``, or the usual one.
        gradient_checkpointing: Trade time for memory.
        compile: Compile the networks with torch.compile: faster after a slow start; needs a C++ compiler.
        optimizer: Makes the optimiser from parameter groups.
        lr_scheduler: Makes the scheduler, stepped every optimiser step.
        noise_seed: Seed of noise, noise levels and dropout.

    Raises:
        InputError: If there is neither a network nor an init, or they and the classes do not fit.
    """

    objective: str = "edm"

    def __init__(
        self,
        network: dict[str, Any] | None = None,
        init: str | None = None,
        num_classes: int | None = None,
        label_dropout: float = 0.0,
        noise: NoiseRange | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        optimizer: Any = torch.optim.RAdam,
        lr_scheduler: Any = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, noise_seed)
        if not 0 <= label_dropout < 1:
            raise InputError(f"label_dropout is {label_dropout}; give 0 or more, and less than 1")
        if network is None and init is None:
            raise InputError("network is missing: give its arguments, or init (cd: teacher) to start from")
        start = load_start(init) if init else None
        self.noise = noise or (start.noise if start else NoiseRange())
        if network is not None:
            self.num_classes, self.null_class = num_classes, num_classes is not None and label_dropout > 0
            self.unet = _built(network, num_classes, self.null_class)
            if start is not None:
                copy_all_but_classes(start.unet, self.unet, str(init))
        elif start is not None:
            self.unet, self.num_classes = start.unet, start.num_classes
            self.null_class = start.facts.null_label is not None
            if num_classes not in (None, start.num_classes) or (label_dropout and not self.null_class):
                raise InputError(
                    f"init {init} has {start.num_classes or 'no'} classes and {'a' if self.null_class else 'no'} null "
                    "class; give network too, to start with other classes"
                )
        self.label_dropout, self.compiles = label_dropout, compile
        self.unet.train().requires_grad_(True)
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self._seen: Tensor | None = None  # how often each class was trained; no buffer, which DDP would overwrite

    def on_fit_start(self) -> None:
        """Compile what the configuration wants compiled; the names of weights stay as they are."""
        if self.compiles:
            for net in (m for m in self.children() if isinstance(m, UNet2DModel)):
                net.compile()

    # Labels

    def setup(self, stage: str) -> None:
        """Compare the classes of data and model, so that no step has to look at labels on the accelerator.

        Raises:
            InputError: If the data has none where the model has some, or more.
        """
        super().setup(stage)
        count = getattr(getattr(self.trainer, "datamodule", None), "num_classes", None)
        if self.num_classes is not None and count is not None and not 0 < count <= self.num_classes:
            raise InputError(f"num_classes is {self.num_classes}, but the data has {count or 'no'} classes")

    def labels(self, batch: Mapping[str, Any], draws: Draws) -> Tensor | None:
        """Labels to train with, (B,) or None; some dropped, and those that are new noted."""
        label = checked_labels(batch.get("label"), self.num_classes, batch.get("id", ()))
        if label is None or not self.training or self.num_classes is None:
            return label
        if self._seen is None or self._seen.device != label.device:
            before = self._seen
            self._seen = torch.zeros(self.num_classes, dtype=torch.int64, device=label.device)
            if before is not None:
                self._seen += before.to(label.device)
        self._seen.index_add_(0, label, torch.ones_like(label))
        if self.label_dropout:
            label = torch.where(draws.uniform() < self.label_dropout, self.num_classes, label)
        return label

    def on_train_end(self) -> None:
        """Gather which classes any rank has seen."""
        if self._seen is not None and self.trainer.world_size > 1:
            self._seen = self.trainer.strategy.reduce(self._seen, reduce_op="sum")

    # Checkpoints and export

    def facts(self) -> ModelFacts:
        """What the exported model says about itself."""
        return ModelFacts(
            kind="edm" if self.objective == "edm" else "consistency",
            labels=self._seen.nonzero().flatten().tolist() if self._seen is not None else None,
            null_label=self.num_classes if self.null_class else None,
        )

    @property
    def grid(self) -> int:
        """On how many levels the exported model lays out its steps."""
        return GRID

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a pipeline needs to rebuild the network."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY] = checkpoint_entry(Start(self.unet, self.noise, self.facts(), self.grid))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the account of trained classes."""
        super().on_load_checkpoint(checkpoint)
        labels = checkpoint.get(CHECKPOINT_KEY, {}).get("facts", {}).get("labels")
        if labels is not None and self.num_classes:
            self._seen = torch.zeros(self.num_classes, dtype=torch.int64)
            self._seen[labels] = 1

    def export(self, folder: str | Path) -> None:
        """Write the model in the layout of diffusers' ConsistencyModelPipeline, and its card."""
        save_folder(Path(folder), self.unet, scheduler_for(self.noise, self.grid), self.facts())
        run = Path(self.trainer.default_root_dir) if self._trainer is not None else None
        write_card(
            folder,
            name=f"{_TITLES[self.objective]}, {self.unet.config['sample_size']} pixels",
            summary="Makes pictures from noise"
            + (
                " in many steps; the teacher of few-step models."
                if self.objective == "edm"
                else " in one to a few steps."
            ),
            run=run if run is not None and (run / "run.json").is_file() else None,
            use=_USE,
            pipeline_tag="unconditional-image-generation",
            tags=["diffusion" if self.objective == "edm" else "consistency-model"],
        )

    def start_noise(self, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        """Standard normal numbers of the batch's shape, to sample from."""
        shape = batch["image"].shape
        return torch.randn(shape, generator=generator, device=generator.device).to(self.device)


def _built(network: dict[str, Any], num_classes: int | None, null_class: bool) -> UNet2DModel:
    try:
        return build_unet(**{"num_classes": num_classes, "null_class": null_class, **network})
    except TypeError as error:
        raise InputError(f"network: {error}") from error
