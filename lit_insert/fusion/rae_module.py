"""Training of a representation autoencoder's decoder, on a frozen encoder or one that learns along."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderRAE
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lit_insert.artifacts.card import write_card
from lit_insert.errors import InputError
from lit_insert.fusion.adversary import (
    AdversarySettings,
    Discriminator,
    adaptive_weight,
    augmented,
    draw_augmentation,
    eight_bits,
    hinge,
)
from lit_insert.fusion.latents import LatentStatistics, set_statistics, start_autoencoder, thaw
from lit_insert.fusion.objective import along
from lit_insert.metrics.fidelity import PictureFidelity
from lit_insert.metrics.perceptual import Lpips
from lit_insert.training import parameters
from lit_insert.training.parameters import frozen
from lit_insert.training.shared import SharedDraws

_NOT_SAVED = ["optimizer", "lr_scheduler"]
_USE = (
    "from diffusers import AutoencoderRAE",
    "",
    'autoencoder = AutoencoderRAE.from_pretrained("path/or/hub-id")',
    "features = autoencoder.encode(pictures_in_0_1).latent",
)


class RAEDecoderModule(SharedDraws):
    """Train the decoder of an autoencoder whose encoder is frozen (Zheng et al. 2025).

    Pictures come at the decoder's size; the encoder sees them at its own. With an adversary the optimisation is manual:
    the decoder's and then the discriminator's step; ``gradient_clip_val`` and ``micro_batch_size`` do then what the
    trainer's settings do otherwise, which Lightning refuses.

    Args:
        autoencoder: Arguments of diffusers' AutoencoderRAE; null takes those of ``init``.
        init: Where the weights start: a run, an exported folder or a hub id; null starts anew.
        encoder: Folder or hub id of the pretrained encoder; null keeps that of ``init``, or random weights.
        train_encoder: Train the encoder too: to make a representation where none is at hand.
        noise_tau: Noise s·e with s uniform in [0, noise_tau] is added to the features in training.
        l1: Weight of the mean absolute error, on [0,1].
        l2: Weight of the mean squared error, on [0,1].
        lpips: Weight of the perceptual distance; above 0 it fetches VGG's weights.
        adversary: Train against a discriminator too; null for none.
        statistics_batches: Batches that the statistics of the features are taken of before training starts; not with
            ``train_encoder``, under which they would not stay.
        micro_batch_size: With an adversary: samples at once; the gradients of a batch are accumulated.
        gradient_clip_val: With an adversary: largest norm of either's gradient; null for none.
        optimizer: Makes the optimiser from parameter groups, one for each side.
        lr_scheduler: Makes the scheduler, stepped every optimiser step.
        noise_seed: Seed of noise and augmentation.

    Raises:
        InputError: If there are no arguments and no init, or settings contradict.
    """

    def __init__(
        self,
        autoencoder: dict[str, Any] | None = None,
        init: str | None = None,
        encoder: str | None = None,
        train_encoder: bool = False,
        noise_tau: float = 0.8,
        l1: float = 1.0,
        l2: float = 0.0,
        lpips: float = 0.0,
        adversary: AdversarySettings | None = None,
        statistics_batches: int = 64,
        micro_batch_size: int | None = None,
        gradient_clip_val: float | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, noise_seed)
        self.save_hyperparameters(ignore=_NOT_SAVED)
        if adversary is None and (micro_batch_size or gradient_clip_val):
            raise InputError(
                "micro_batch_size and gradient_clip_val are for training with an adversary; without one set "
                "trainer.accumulate_grad_batches and trainer.gradient_clip_val"
            )
        self.autoencoder = start_autoencoder(autoencoder, init, encoder)
        self.noise_tau, self.weights = noise_tau, {"l1": l1, "l2": l2, "lpips": lpips}
        self.statistics_batches = 0 if train_encoder else statistics_batches
        self.micro_batch_size, self.gradient_clip_val = micro_batch_size, gradient_clip_val
        self.train_encoder, self._own_encoder = train_encoder, init is None and encoder is None
        if self.statistics_batches:  # until they are measured
            channels = self.autoencoder.config["encoder_hidden_size"]
            set_statistics(self.autoencoder, torch.zeros(channels), torch.ones(channels))
        self.autoencoder.decoder.requires_grad_(True)
        if train_encoder:
            thaw(self.autoencoder.encoder)
        else:
            frozen(self.autoencoder.encoder)
        self.perceptual = frozen(Lpips()) if lpips else None
        self.adversary, self.discriminator = adversary, None
        if adversary is not None:
            self.automatic_optimization = False
            self.discriminator = Discriminator(adversary)
            frozen(self.discriminator.backbone)
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool))
        self.fidelity = PictureFidelity()

    measured: Tensor

    # Features and their statistics

    def encode(self, pictures: Tensor) -> Tensor:
        """Normalised features of pictures (N,3,P,P) in [0,1]; with gradients only if the encoder learns."""
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            return self.autoencoder.encode(pictures).latent

    def on_fit_start(self) -> None:
        """Measure mean and standard deviation of the features, unless a checkpoint brought them."""
        if not self.statistics_batches or bool(self.measured):
            return
        source = self.trainer.datamodule or self  # type: ignore[attr-defined]
        statistics = LatentStatistics(self.autoencoder.config["encoder_hidden_size"]).to(self.device)
        plain = _plain(self.autoencoder)
        with torch.no_grad():
            for number, batch in enumerate(source.train_dataloader()):
                if number == self.statistics_batches:
                    break
                pictures = (batch["image"].to(self.device).float() + 1) / 2
                statistics.update(self.encode(pictures) * plain[1] + plain[0])
        found = statistics.compute()
        set_statistics(self.autoencoder, found["mean"], found["std"])
        self.measured.fill_(True)

    # Losses

    def compute_loss(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Reconstruction error of decoded features, noisy ones in training."""
        pictures = (batch["image"].float() + 1) / 2
        features = self.encode(pictures)
        if self.training:
            features = self._noisy(features, self.draws(batch, generator))
        losses, _ = self.reconstruct(features, pictures)
        return losses

    def _noisy(self, features: Tensor, draws: Any) -> Tensor:
        if not self.noise_tau:
            return features
        strength, noise = draws.uniform() * self.noise_tau, draws.normal(*features.shape[1:])
        return features + along(strength, features) * noise / _plain(self.autoencoder)[1]

    def reconstruct(self, features: Tensor, pictures: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of decoded features, and the pictures (N,3,P,P)."""
        made = self.autoencoder.decode(features).sample.float()
        error = made - pictures
        losses = {"l1": error.abs().mean()}
        mse = error.square().mean()
        total = self.weights["l1"] * losses["l1"] + self.weights["l2"] * mse
        if self.perceptual is not None:
            losses["lpips"] = self.perceptual(made * 2 - 1, pictures * 2 - 1).mean()
            total = total + self.weights["lpips"] * losses["lpips"]
        psnr = -10 * torch.log10((made.detach().clamp(0, 1) - pictures).square().mean().clamp(min=1e-10))
        return {"loss": total, **losses, "psnr": psnr}, made

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One batch: the loss or, with an adversary, both sides' optimiser steps."""
        if self.automatic_optimization:
            return super().training_step(batch, batch_idx)
        return self._adversarial_step(batch)

    def _adversarial_step(self, batch: dict[str, Any]) -> Tensor:
        how, judge = self.adversary, self.discriminator
        assert how is not None and judge is not None  # noqa: PT018 - for the type checker
        draws = self.draws(batch, self._generator(self.trainer.fit_loop.epoch_loop.total_batch_idx))
        pictures = (batch["image"].float() + 1) / 2
        features = self._noisy(self.encode(pictures), draws)
        shown = [draw_augmentation(draws).to(pictures.device) for _ in range(3)]
        ours, theirs = self.optimizers()  # type: ignore[misc, attr-defined]
        step = self.global_step
        against, learns = step >= how.generator_from, step >= how.discriminator_from
        size = self.micro_batch_size or len(pictures)
        parts = [slice(i, i + size) for i in range(0, len(pictures), size)]
        sums: dict[str, Tensor] = {}
        fakes = []
        judge.heads.requires_grad_(False)
        for part in parts:
            share = len(pictures[part]) / len(pictures)
            losses, made = self.reconstruct(features[part], pictures[part])
            if against:
                verdict = -judge(augmented(made, shown[0][part], how.translation)).mean()
                weight = adaptive_weight(losses["loss"], verdict, [self.autoencoder.decoder.decoder_pred.weight])
                losses |= {"adversarial": verdict, "adaptive_weight": weight}
                losses["loss"] = losses["loss"] + how.weight * weight * verdict
            self.manual_backward(losses["loss"] * share)
            fakes.append(eight_bits(made))
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() * share
        judge.heads.requires_grad_(True)
        self._watch.note(sums["loss"], batch)
        self._clip(self.autoencoder.decoder)
        ours.step()
        ours.zero_grad()
        if learns:
            for part, fake in zip(parts, fakes, strict=True):
                share = len(pictures[part]) / len(pictures)
                real = judge(augmented(pictures[part], shown[1][part], how.translation))
                loss = hinge(real, judge(augmented(fake, shown[2][part], how.translation)))
                self.manual_backward(loss * share)
                sums["discriminator"] = sums.get("discriminator", 0) + loss.detach() * share
            self._clip(judge.heads)
            # Not through Lightning, which would count it as a step of the run.
            theirs.optimizer.step()
            theirs.zero_grad()
        for scheduler in self._schedulers():
            scheduler.step()
        told = {f"train/{k}": v for k, v in self._over_ranks(sums).items()}
        self.log_dict(told, prog_bar=True, batch_size=len(pictures))
        return sums["loss"]

    def _clip(self, module: nn.Module) -> None:
        if self.gradient_clip_val:
            nn.utils.clip_grad_norm_(module.parameters(), self.gradient_clip_val)

    def _schedulers(self) -> list[Any]:
        found = self.lr_schedulers()
        return found if isinstance(found, list) else [found] if found is not None else []

    def configure_optimizers(self) -> Any:
        """One optimiser, or with an adversary one for each side, each with its scheduler."""
        if self.discriminator is None:
            return super().configure_optimizers()
        sides = (self.autoencoder, self.discriminator.heads)
        optimizers = [self.optimizer_factory(parameters.named_groups(side)) for side in sides]
        if self.lr_scheduler_factory is None:
            return optimizers
        schedulers = [{"scheduler": self.lr_scheduler_factory(o), "interval": "step"} for o in optimizers]
        return optimizers, schedulers

    # Validation and pictures

    def _evaluate(self, batch: dict[str, Any], batch_idx: int, name: str) -> None:
        pictures = (batch["image"].float() + 1) / 2
        losses, made = self.reconstruct(self.encode(pictures), pictures)
        losses.pop("psnr")
        self.log_dict({f"{name}/{k}": v for k, v in losses.items()}, batch_size=len(pictures), sync_dist=True)
        self.fidelity.update(made.clamp(0, 1) * 2 - 1, batch["image"].float())

    def _log_fidelity(self, name: str) -> None:
        found = self.fidelity.compute()
        self.log_dict({f"{name}/{k}": v.float() for k, v in found.items() if k != "l1"}, prog_bar=True)
        self.fidelity.reset()

    def on_validation_epoch_end(self) -> None:
        """Log PSNR and SSIM."""
        self._log_fidelity("val")

    def on_test_epoch_end(self) -> None:
        """Log PSNR and SSIM."""
        self._log_fidelity("test")

    @torch.no_grad()
    def sample_grid(self, batch: Mapping[str, Any], generator: torch.Generator) -> list[list[Any]]:
        """Rows of a picture and its reconstruction."""
        pictures = (batch["image"].float() + 1) / 2
        made = self.autoencoder.decode(self.encode(pictures)).sample.float()
        return [[a * 2 - 1, b.clamp(0, 1) * 2 - 1] for a, b in zip(pictures, made, strict=True)]

    # Checkpoints and export

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep a random frozen encoder, which nothing else could bring back."""
        state = checkpoint["state_dict"]
        kept = {k: v for k, v in state.items() if self._own_encoder and k.startswith("autoencoder.encoder.")}
        if self.adversary is not None and self.adversary.backbone is None:
            kept |= {k: v for k, v in state.items() if k.startswith("discriminator.backbone.")}
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"].update(kept)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the configuration say what the weights of a checkpoint have: the statistics of the features."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        if bool(state.get("measured", False)):
            set_statistics(self.autoencoder, *(state[f"autoencoder._latents_{k}"] for k in ("mean", "std")))

    def export(self, folder: str | Path) -> None:
        """Write the autoencoder as diffusers does, with its features' statistics, and its card."""
        self.autoencoder.save_pretrained(folder)
        run = Path(self.trainer.default_root_dir) if self._trainer is not None else None
        side = self.autoencoder.decoder_image_size
        write_card(
            folder,
            name=f"Representation autoencoder, {side} pixels",
            summary="Pictures to feature maps and back; the feature space of infer.py fuse.",
            run=run if run is not None and (run / "run.json").is_file() else None,
            use=_USE,
            pipeline_tag="image-feature-extraction",
            tags=["autoencoder"],
        )


def _plain(autoencoder: AutoencoderRAE) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by which an autoencoder normalises its features, as (C,1,1) or a single number."""
    return autoencoder._latents_mean, autoencoder._latents_std + 1e-5
