"""The LightningModule that every method builds on."""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn

from lit_insert import __version__
from lit_insert.diffusion.noise import step_generator
from lit_insert.errors import InputError
from lit_insert.images import image_grid
from lit_insert.training import parameters
from lit_insert.training.parameters import frozen as frozen
from lit_insert.training.watch import LossWatch

log = logging.getLogger(__name__)
HEADER = "lit_insert"  # key of what a checkpoint says about itself
_OMITTED = object()


class BaseModule(pl.LightningModule, ABC):
    """Optimiser wiring, seeded noise, logging and slim checkpoints; subclasses say what the loss is.

    * Every random number of a step comes from (``noise_seed``, rank, number of the batch): the generator handed
      to `compute_loss`, and torch's global one, reseeded with it. So an interrupted run continues exactly.
    * A checkpoint holds what trains. Weights that it lacks must be frozen ones, or loading it is an error.
    * A loss or gradient that is not finite stops the run before the weights change, naming the samples.

    Args:
        optimizer: Makes the optimiser from parameter groups.
        lr_scheduler: Makes the scheduler, stepped every optimiser step; none by default.
        noise_seed: Seed of the noise, timesteps and dropout drawn while training.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__()
        self.optimizer_factory = optimizer
        self.lr_scheduler_factory = lr_scheduler
        self.noise_seed = noise_seed
        self.strict_loading = False  # Lightning's check knows no frozen weights; on_load_checkpoint's does
        self._watch = LossWatch()

    # What a subclass gives

    @abstractmethod
    def compute_loss(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Return ``{"loss": scalar, …parts}`` for one batch, in float32."""

    def parameter_groups(self) -> Iterable[dict[str, Any]]:
        """Optimiser groups; by default all that requires a gradient, biases and norms without weight decay.

        A group may set ``lr_scale``, its learning rate in multiples of the optimiser's; see `named_groups`.
        """
        return parameters.named_groups(self)

    @abstractmethod
    def export(self, folder: str | Path) -> None:
        """Write what was trained as a folder that a pipeline loads."""

    def sample_grid(self, batch: Mapping[str, Any], generator: torch.Generator) -> list[list[Any]]:
        """Rows of pictures (PIL or (3,H,W) tensors in [-1,1]) to look at while training; by default none."""
        return []

    # Training

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One batch's loss."""
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        losses = self.compute_loss(batch, self._generator(number))
        self._watch.note(losses["loss"], batch)
        self.log_dict(
            {f"train/{k}": v for k, v in self._over_ranks(losses).items()},
            prog_bar=True,
            batch_size=batch_length(batch),
        )
        return losses["loss"]

    def _over_ranks(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over the ranks on steps that are logged; the rank's own values on the others, where nobody waits."""
        values = {k: v.detach() for k, v in losses.items()}
        if self.trainer.world_size == 1 or not self.trainer._logger_connector.should_update_logs:
            return values
        together = torch.stack([v.float() for v in values.values()])
        return dict(zip(values, self.trainer.strategy.reduce(together, reduce_op="mean"), strict=True))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The same loss on held-out batches, with the same noise every time."""
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The same loss on test batches."""
        self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: dict[str, Any], batch_idx: int, name: str) -> None:
        losses = self.compute_loss(batch, self._generator(-1 - batch_idx))
        self.log_dict(
            {f"{name}/{k}": v for k, v in losses.items()},
            batch_size=batch_length(batch),
            sync_dist=True,
            prog_bar=True,
        )

    def _generator(self, number: int) -> torch.Generator:
        # Layers such as nn.Dropout know only torch's global generator, so that follows the step too.
        seeds = step_generator(self.noise_seed, self.global_rank, number)
        torch.manual_seed(int(torch.randint(1 << 62, (), generator=seeds)))
        return step_generator(self.noise_seed, self.global_rank, number, self.device)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """By default, each sample's row of `sample_grid` as one picture.

        Raises:
            InputError: If the module draws none.
        """
        rows = self.sample_grid(batch, self._generator(-1 - batch_idx))
        if not rows:
            raise InputError(f"{type(self).__name__} draws no pictures, so predict has nothing to write")
        return {"id": list(batch["id"]), "image": [image_grid([row]) for row in rows]}

    def train(self, mode: bool = True) -> "BaseModule":
        """Switch to training mode, except for what `frozen` marked."""
        super().train(mode)
        for module in self.modules():
            if getattr(module, "is_frozen", False):
                module.eval()
        return self

    def configure_optimizers(self) -> Any:
        """Build the optimiser and, if given, a scheduler stepped every optimiser step.

        Raises:
            InputError: If nothing trains.
        """
        groups = [dict(group) for group in self.parameter_groups()]
        if not any(len(list(group["params"])) for group in groups):
            raise InputError("nothing to train: no parameter of the model requires a gradient")
        optimizer = self.optimizer_factory(groups)
        parameters.scale_rates(optimizer)
        if self.lr_scheduler_factory is None:
            return optimizer
        scheduler = self.lr_scheduler_factory(optimizer)
        parameters.scale_peaks(optimizer, scheduler)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
        if hasattr(scheduler, "monitor"):
            config = {"scheduler": scheduler, "interval": "epoch", "monitor": scheduler.monitor}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def setup(self, stage: str) -> None:
        """Bring what trains to float32 if it came in half and the run is not wholly in half."""
        slow = str(self.trainer.precision).startswith("bf16") and emulates_bf16(self.trainer.strategy.root_device)
        if stage == "fit" and slow and self.trainer.is_global_zero:
            log.warning("this CPU emulates bfloat16, many times slower; give --trainer.precision 32-true")
        if self.trainer.precision not in ("bf16-true", "16-true"):
            for p in parameters.trainable(self).values():
                if p.dtype in (torch.bfloat16, torch.float16):
                    p.data = p.data.float()

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, then drop the gradients.

        Kept until the next backward pass, they would add to the forward pass's peak of memory; on a CPU, giving that
        memory back and taking it anew costs a tenth of a step.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, fused optimisers in bf16-mixed included.

        Lightning refuses those in any mixed precision, because a gradient scaler would unscale within the step; only
        16-mixed has a scaler.
        """
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None and gradient_clip_val:
            algorithm = GradClipAlgorithmType((gradient_clip_algorithm or "norm").lower())
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log gradient norm and learning rates, and stop on a gradient that is not finite."""
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = self._whole(nn.utils.get_total_norm(grads))
        self._watch.check(norm, self.trainer)
        self.log("train/grad_norm", norm)
        rates = {str(g.get("name", i)): g["lr"] for i, g in enumerate(optimizer.param_groups)}
        rates = {k: v for k, v in rates.items() if not k.endswith("/no_decay") or k[:-9] not in rates}
        self.log_dict({f"lr/{k}" if len(rates) > 1 else "lr": float(v) for k, v in rates.items()})

    def _whole(self, norm: Tensor) -> Tensor:
        """Norm over all ranks where each holds a part of the gradient."""
        if hasattr(norm, "full_tensor"):
            return norm.full_tensor()
        if sharded(self.trainer.strategy):
            return self.trainer.strategy.reduce(norm.square(), reduce_op="sum").sqrt()
        return norm

    # Checkpoints

    @property
    def base_model(self) -> str | None:
        """Id or folder of the published model that this one builds on, if any."""
        base = self.hparams.get("base")
        return str(base) if base is not None else None

    def config_hash(self) -> str:
        """Digest of the hyper-parameters, to tell checkpoints of another configuration."""
        text = json.dumps(_primitive(dict(self.hparams)), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out frozen weights; add what the checkpoint is of."""
        self._watch.flush()
        unneeded = parameters.frozen_keys(self)
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in unneeded}
        hparams = _primitive(dict(checkpoint.get("hyper_parameters", {})))
        if hparams:
            checkpoint["hyper_parameters"] = hparams
        checkpoint[HEADER] = {
            "version": __version__,
            "class": f"{type(self).__module__}.{type(self).__qualname__}",
            "base_model": self.base_model,
            "config_hash": self.config_hash(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a state that does not fit this model.

        Raises:
            InputError: If a weight that trains is missing, a weight is unknown, or a shape differs.
        """
        if self._trainer is None or not sharded(self.trainer.strategy):
            parameters.check_state(checkpoint["state_dict"], self, "the checkpoint")


def emulates_bf16(device: torch.device) -> bool:
    """Whether a device is a CPU without instructions that oneDNN can compute bfloat16 with."""
    fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return device.type == "cpu" and not fast


def sharded(strategy: Any) -> bool:
    """Whether each rank holds only a part of every weight, so that names and shapes here are not the model's."""
    return isinstance(strategy, FSDPStrategy | ModelParallelStrategy)


def batch_length(batch: Any) -> int:
    """Number of samples of a batch: the length of its first tensor or list."""
    if isinstance(batch, Mapping):
        batch = next((v for v in batch.values() if isinstance(v, Tensor | list)), ())
    return len(batch) if not isinstance(batch, tuple) else len(batch[0]) if batch else 0


def _primitive(value: Any) -> Any:
    """The part of a value that is plain data; anything else is left out."""
    if isinstance(value, Mapping):
        kept = {str(k): _primitive(v) for k, v in value.items()}
        return {k: v for k, v in kept.items() if v is not _OMITTED}
    if isinstance(value, list | tuple | set):
        return [v for v in map(_primitive, value) if v is not _OMITTED]
    if isinstance(value, Path):
        return str(value)
    return value if value is None or isinstance(value, str | int | float | bool) else _OMITTED
