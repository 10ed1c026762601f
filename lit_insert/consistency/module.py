"""Training of diffusion teachers and of consistency models."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from diffusers import UNet2DModel
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lit_insert.consistency.distances import distance_by_name
from lit_insert.consistency.edm import Denoiser, edm_loss, expand, heun_sample, lognormal
from lit_insert.consistency.generator_module import GeneratorModule
from lit_insert.consistency.karras import NoiseRange
from lit_insert.consistency.network import checked_labels, consistency_function, edm_denoiser
from lit_insert.consistency.objective import consistency_loss, distilled_point, shared_noise_point
from lit_insert.consistency.pairs import PairSchedule
from lit_insert.consistency.sampling import check_sigmas, guided, multistep, sigmas_for
from lit_insert.consistency.sources import ModelFacts
from lit_insert.consistency.start import load_start
from lit_insert.errors import InputError
from lit_insert.metrics.distribution import sliced_wasserstein
from lit_insert.training.base import sharded
from lit_insert.training.parameters import frozen

MOST_COMPARED = 1000  # pictures of a validation set, and a rank, that one-step samples are compared with
_NOT_SAVED = ["optimizer", "lr_scheduler"]


class EDMModule(GeneratorModule):
    """Train a diffusion model as Karras et al. 2022 do: the teacher of distillation, the start of ECT.

    Args:
        network: Arguments of `build_unet`; null takes the network of ``init``.
        init: Where the weights start: a run, checkpoint, exported or diffusers folder, or hub id; null starts anew.
        num_classes: Number of classes that the pictures are labelled with; null ignores labels.
        label_dropout: Probability of training a sample as "no label", which guidance needs.
        noise: Range of noise levels; null takes that of ``init``, or the usual one.
        mean: Mean of ln σ in training.
        std: Standard deviation of ln σ in training.
        num_inference_steps: Heun steps of the pictures drawn while training.
        gradient_checkpointing: Trade time for memory.
        compile: Compile the networks with torch.compile: faster after a slow start; needs a C++ compiler.
        optimizer: Makes the optimiser from parameter groups.
        lr_scheduler: Makes the scheduler, stepped every optimiser step.
        noise_seed: Seed of noise, noise levels and dropout.
    """

    def __init__(
        self,
        network: dict[str, Any] | None = None,
        init: str | None = None,
        num_classes: int | None = None,
        label_dropout: float = 0.0,
        noise: NoiseRange | None = None,
        mean: float = -1.2,
        std: float = 1.2,
        num_inference_steps: int = 18,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__(
            network,
            init,
            num_classes,
            label_dropout,
            noise,
            gradient_checkpointing,
            compile,
            optimizer,
            lr_scheduler,
            noise_seed,
        )
        self.save_hyperparameters(ignore=_NOT_SAVED)
        self.mean, self.std, self.num_inference_steps = mean, std, num_inference_steps

    def compute_loss(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """The weighted denoising error; see `edm_loss`."""
        image, draws = batch["image"].float(), self.draws(batch, generator)
        noise, sigma = draws.normal(*image.shape[1:]), lognormal(draws.normal(), self.mean, self.std)
        denoiser = edm_denoiser(self.unet, self.noise)
        loss = edm_loss(denoiser, image, noise, sigma, self.labels(batch, draws), sigma_data=self.noise.sigma_data)
        return {"loss": loss.mean()}

    @torch.no_grad()
    def sample_grid(self, batch: Mapping[str, Any], generator: torch.Generator) -> list[list[Any]]:
        """Rows of a real picture and one made with its label."""
        levels = self.noise.sigmas(self.num_inference_steps)
        noise = self.start_noise(batch, generator)
        label = checked_labels(batch.get("label"), self.num_classes)
        made = heun_sample(edm_denoiser(self.unet, self.noise), noise, levels, label)
        return [[real, picture.clamp(-1, 1)] for real, picture in zip(batch["image"], made, strict=True)]


class ConsistencyModule(GeneratorModule):
    """Train a consistency model: distil a diffusion model (cd), or learn from data alone (ct, ict, ect).

    Args:
        objective: "cd" (needs ``teacher``), "ct", "ict" or "ect" (meant to start from a diffusion model, ``init``).
        network: Arguments of `build_unet`; null takes the network of ``init`` or of the teacher.
        init: Where the weights start: a run, checkpoint, exported or diffusers folder, or hub id; null takes the
            teacher's, or starts anew.
        teacher: The diffusion model that cd distils: a run, checkpoint, exported folder or hub id.
        schedule: Which noise levels are paired, and the target network's decay; set ``total_steps``.
        distance: "l1", "l2", "l2-32", "pseudo_huber" or "lpips"; null takes l2 for cd, else pseudo_huber.
        huber_c: c of the pseudo-Huber distance; null takes 0.00054 times the root of a picture's numbers, for ect 0.
        solver: The teacher's step: "heun" or "euler".
        guidance_scale: Of the teacher, if it has a null class; distilled into the student. 1 for none.
        num_classes: Number of classes that the pictures are labelled with; null ignores labels, or takes those of
            ``init``.
        label_dropout: Probability of training a sample as "no label", which guidance needs.
        noise: Range of noise levels; null takes that of ``init`` or the teacher, or the usual one.
        sigmas: Noise levels to sample at, by number of steps, such as {"2": [80, 0.82]}; the exported model keeps them.
        gradient_checkpointing: Trade time for memory.
        compile: Compile the networks with torch.compile: faster after a slow start; needs a C++ compiler.
        optimizer: Makes the optimiser from parameter groups.
        lr_scheduler: Makes the scheduler, stepped every optimiser step.
        noise_seed: Seed of noise, noise levels and dropout.

    Raises:
        InputError: If the teacher is missing, or is no diffusion model, or arguments contradict.
    """

    def __init__(
        self,
        objective: Literal["cd", "ct", "ict", "ect"] = "cd",
        network: dict[str, Any] | None = None,
        init: str | None = None,
        teacher: str | None = None,
        schedule: PairSchedule = PairSchedule(),  # noqa: B008
        distance: Literal["l1", "l2", "l2-32", "pseudo_huber", "lpips"] | None = None,
        huber_c: float | None = None,
        solver: Literal["heun", "euler"] = "heun",
        guidance_scale: float = 1.0,
        num_classes: int | None = None,
        label_dropout: float = 0.0,
        noise: NoiseRange | None = None,
        sigmas: dict[str, list[float]] | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        optimizer: OptimizerCallable = torch.optim.RAdam,
        lr_scheduler: LRSchedulerCallable | None = None,
        noise_seed: int = 0,
    ) -> None:
        if (objective == "cd") != (teacher is not None):
            need = "cd needs a teacher" if teacher is None else f"{objective} takes no teacher; give it as init"
            raise InputError(f"objective {objective}: {need}")
        init = init or (teacher if network is None or teacher is not None else None)
        super().__init__(
            network,
            init,
            num_classes,
            label_dropout,
            noise,
            gradient_checkpointing,
            compile,
            optimizer,
            lr_scheduler,
            noise_seed,
        )
        self.save_hyperparameters(ignore=_NOT_SAVED)
        self.objective = objective
        self.schedule = schedule.filled(objective)
        self.hparams["schedule"] = dataclasses.asdict(self.schedule)
        huber_c = 0.0 if huber_c is None and objective == "ect" else huber_c
        self.distance = distance_by_name(distance or ("l2" if objective == "cd" else "pseudo_huber"), huber_c)
        if isinstance(self.distance, nn.Module):
            frozen(self.distance)
        self.sigmas = {str(int(n)): check_sigmas(given, self.noise) for n, given in (sigmas or {}).items()}
        wrong = next((n for n, given in self.sigmas.items() if len(given) != int(n)), None)
        if wrong:
            raise InputError(f"sigmas: {len(self.sigmas[wrong])} levels are given for {wrong} steps")
        self.order = {"euler": 1, "heun": 2}[solver]
        self.teacher: nn.Module | None = None
        self._guide: Denoiser | None = None
        if teacher is not None:
            self.teacher, self._guide = self._load_teacher(teacher, guidance_scale)
        self.target: UNet2DModel | None = None
        if self.schedule.decay(objective, 0) > 0:
            self.target = copy.deepcopy(self.unet).requires_grad_(False)
        self._target_restored = False
        self._compared: list[tuple[Tensor, Tensor]] = []

    def _load_teacher(self, source: str, scale: float) -> tuple[nn.Module, Denoiser]:
        start = load_start(source)
        if start.facts.kind != "edm":
            raise InputError(f"teacher {source}: is a consistency model; cd needs a diffusion model")
        if start.num_classes != self.num_classes:
            raise InputError(f"teacher {source}: has {start.num_classes} classes, the student {self.num_classes}")
        if scale != 1 and start.facts.null_label is None:
            raise InputError(f"guidance_scale {scale}: teacher {source} has no null class; train it with label_dropout")
        teacher = frozen(start.unet)
        return teacher, guided(edm_denoiser(teacher, self.noise), scale, self.num_classes or 0)

    # Target network

    def setup(self, stage: str) -> None:
        """Refuse strategies under which the target network is not whole."""
        super().setup(stage)
        if self.target is not None and sharded(self.trainer.strategy):
            raise InputError(f"objective {self.objective}: a target network needs whole weights; use ddp, or mu0: 0")

    def on_fit_start(self) -> None:
        """Let the target network begin where the weights do, wherever they came from, unless it was restored."""
        if self.target is not None and not self._target_restored:
            self.target.load_state_dict(self.unet.state_dict())
        super().on_fit_start()

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step, then move the target network: once per optimiser step, before any checkpoint of it is written."""
        step = self.global_step
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.target is not None:
            self.move_target(self.schedule.decay(self.objective, step))

    @torch.no_grad()
    def move_target(self, decay: float) -> None:
        """θ⁻ <- μ θ⁻ + (1 - μ) θ."""
        assert self.target is not None
        torch._foreach_lerp_(list(self.target.parameters()), list(self.unet.parameters()), 1 - decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the target network, which does not train but is part of the run's state."""
        kept = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("target.")}
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"].update(kept)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint without the target network that the objective needs."""
        super().on_load_checkpoint(checkpoint)
        if self.target is not None:
            missing = {f"target.{k}" for k in self.target.state_dict()} - checkpoint["state_dict"].keys()
            if missing:
                raise InputError(f"the checkpoint lacks the target network ({len(missing)} weights); set mu0: 0")
            self._target_restored = True

    # Objective and pictures

    def compute_loss(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Inconsistency of pairs of noise levels; outside training at the schedule's end, with no target network."""
        image, draws = batch["image"].float(), self.draws(batch, generator)
        noise, uniform, normal = draws.normal(*image.shape[1:]), draws.uniform(), draws.normal()
        label = self.labels(batch, draws)
        step = self.global_step if self.training else self.schedule.total_steps
        pairs = self.schedule.draw(self.objective, step, uniform, normal, self.noise)
        x_high = image + expand(pairs.sigma, image) * noise
        if self._guide is not None:
            x_low = distilled_point(self._guide, x_high, pairs.sigma, pairs.lower, label, order=self.order)
        else:
            x_low = shared_noise_point(image, noise, pairs.lower)
        student = consistency_function(self.unet, self.noise)
        follows = self.target if self.target is not None and self.training else self.unet
        distances = consistency_loss(
            student,
            consistency_function(follows, self.noise),
            x_high=x_high,
            sigma=pairs.sigma,
            x_low=x_low,
            lower=pairs.lower,
            distance=self.distance,
            label=label,
            clean=image if self.objective == "ect" else None,
            floor=self.noise.sigma_min,
            # Sharded weights are gathered by all ranks together.
            every_row=self._trainer is not None and sharded(self.trainer.strategy),
            fewest_rows=2 if self.compiles else 1,
        )
        losses = {"loss": (pairs.weight * distances).mean()}
        if self.training:
            losses["levels"] = image.new_full((), self.schedule.levels(self.objective, step))
        return losses

    def _evaluate(self, batch: dict[str, Any], batch_idx: int, name: str) -> None:
        super()._evaluate(batch, batch_idx, name)
        if sum(len(real) for real, _ in self._compared) < MOST_COMPARED:
            draws = self.draws(batch, self._generator(-1 - batch_idx))
            noise = draws.normal(*batch["image"].shape[1:])
            label = checked_labels(batch.get("label"), self.num_classes)
            made = multistep(consistency_function(self.unet, self.noise), noise, [self.noise.sigma_max], label=label)
            self._compared.append((batch["image"].float().cpu(), made.float().cpu()))

    def on_validation_epoch_end(self) -> None:
        """Log how far one-step samples are from the pictures: ``val/wasserstein``.

        The inconsistency itself does not tell: any smooth function has little of it between near levels.
        """
        self._log_wasserstein("val")

    def on_test_epoch_end(self) -> None:
        """The same for the test pictures."""
        self._log_wasserstein("test")

    def _log_wasserstein(self, split: str) -> None:
        real, made = (torch.cat(part) for part in zip(*self._compared, strict=True))
        self._compared = []
        self.log(f"{split}/wasserstein", sliced_wasserstein(made, real).to(self.device), sync_dist=True, prog_bar=True)

    def sigmas_for(self, steps: int) -> list[float]:
        """Noise levels at which this model is sampled in a number of steps."""
        return self.sigmas.get(str(steps)) or sigmas_for(steps, self.noise, self.grid)

    @property
    def grid(self) -> int:
        """The levels that cd trains, between which f is worse; what the others train is dense."""
        return self.schedule.levels("cd", 0) if self.objective == "cd" else super().grid

    def facts(self) -> ModelFacts:
        """What the exported model says about itself."""
        return dataclasses.replace(super().facts(), sigmas=self.sigmas or None)

    def sample_grid(self, batch: Mapping[str, Any], generator: torch.Generator) -> list[list[Any]]:
        """Rows of a real picture and three made with its label, in 1, 2 and 4 steps from one noise."""
        f, noise = consistency_function(self.unet, self.noise), self.start_noise(batch, generator)
        label = checked_labels(batch.get("label"), self.num_classes)
        made = [
            multistep(f, noise, self.sigmas_for(n), sigma_min=self.noise.sigma_min, label=label, generator=generator)
            for n in (1, 2, 4)
            if n <= self.grid
        ]
        return [list(row) for row in zip(batch["image"], *made, strict=True)]
