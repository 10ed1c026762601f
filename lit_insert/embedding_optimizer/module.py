"""Training of the embedding optimizer on insertion triplets."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric
from transformers import CLIPVisionModelWithProjection

from lit_insert.diffusion.unet import has_lora, merge_lora
from lit_insert.embedding_optimizer.features import check_processor, use_feature_cache
from lit_insert.embedding_optimizer.objective import denoising_error, draw_dropout, weighted_loss
from lit_insert.embedding_optimizer.original import NAMES, save_original
from lit_insert.embedding_optimizer.parts import InsertParts, Sampling, UnetTuning, load_parts
from lit_insert.embedding_optimizer.pipeline import InsertPipeline
from lit_insert.errors import InputError
from lit_insert.metrics.fidelity import PictureFidelity
from lit_insert.metrics.preservation import BackgroundPreservation
from lit_insert.training.base import BaseModule, batch_length
from lit_insert.training.parameters import frozen, named_groups

QUARTERS = 4
_NO_DECAY = ("queries", "null_embedding", "latents")  # inputs rather than weights: pulling them to zero is no prior


class EmbeddingOptimizerModule(BaseModule):
    """Learn to insert the object of a reference picture into a scene, with no mask and no prompt.

    Args:
        base: InstructPix2Pix-layout folder or hub id (vae/, unet/, scheduler/), or "pocket".
        image_encoder: CLIP vision folder or hub id; by default the base's own image_encoder/.
        adapter: EmbeddingOptimizer arguments, such as mode ("perceiver", "legacy", "ip" or "ip_plus"); sizes left
            out are taken from the base. Null keeps the adapter that the base already has.
        adapter_weights: Where the adapter starts: a legacy emb_opt.pt, an IP-Adapter file, or an exported
            adapter. Null starts anew.
        unet: What of the UNet trains.
        train_image_encoder: Train the image encoder too; only for building small bases.
        conditioning_dropout: Probability of dropping the object, the scene, and both (each), 0 to 1/3.
        mask_weight: Extra loss weight of the inserted region; 0 for none.
        snr_gamma: γ of min-SNR weighting; null for none.
        gradient_checkpointing: Trade UNet time for memory.
        feature_cache: Folder to keep what the frozen encoders make of the training data in, computed once; null
            computes it in every step.
        sampling: How pictures are drawn while training, by predict, and by the exported model by default.
        optimizer: Makes the optimiser from parameter groups.
        lr_scheduler: Makes the scheduler, stepped every optimiser step.
        noise_seed: Seed of the noise, timesteps and dropout drawn while training.

    Raises:
        InputError: If a part of the base is missing, the UNet tuning matches nothing, or arguments contradict.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    image_encoder: CLIPVisionModelWithProjection

    def __init__(
        self,
        base: str = "pocket",
        image_encoder: str | None = None,
        adapter: dict[str, Any] | None = None,
        adapter_weights: str | None = None,
        unet: UnetTuning = UnetTuning(),  # noqa: B008
        train_image_encoder: bool = False,
        conditioning_dropout: float = 0.05,
        mask_weight: float = 0.0,
        snr_gamma: float | None = None,
        gradient_checkpointing: bool = False,
        feature_cache: str | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, noise_seed)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        # A checkpoint rebuilds the module, and inference its networks, from plain values.
        tuning = UnetTuning(**unet) if isinstance(unet, Mapping) else unet
        self.sampling = Sampling(**sampling) if isinstance(sampling, Mapping) else sampling
        self.hparams["unet"] = dataclasses.asdict(tuning)
        self.hparams["sampling"] = dataclasses.asdict(self.sampling)
        if not 0 <= conditioning_dropout <= 1 / 3:
            raise InputError(f"conditioning_dropout is {conditioning_dropout}; give 0 to 1/3, it is drawn thrice")
        if feature_cache and train_image_encoder:
            raise InputError("feature_cache needs a frozen image encoder; set train_image_encoder: false")
        self.conditioning_dropout = conditioning_dropout
        self.mask_weight, self.snr_gamma = mask_weight, snr_gamma
        self.processing_resolution: int | None = None
        self.unet_lr_scale, self.feature_cache = tuning.lr_scale, feature_cache
        parts = load_parts(base, image_encoder, adapter, adapter_weights, tuning)
        self.scheduler, self.feature_extractor = parts.scheduler, parts.feature_extractor
        self.vae, self.unet = frozen(parts.vae), frozen(parts.unet)
        self.image_encoder = frozen(parts.image_encoder)
        self.embedding_optimizer = parts.embedding_optimizer
        self.tuned = parts.tuned
        for name in self.tuned:
            self.unet.get_parameter(name).requires_grad_(True)
        if train_image_encoder:
            self._train_image_encoder()
        self.embedding_optimizer.requires_grad_(True).train()
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.quarters = nn.ModuleList(MeanMetric() for _ in range(QUARTERS))
        self.fidelity, self.preservation = PictureFidelity(), BackgroundPreservation()

    def _train_image_encoder(self) -> None:
        """Train what of the encoder the adapter reads; DDP refuses parameters that get no gradient."""
        names, weights = zip(*self.image_encoder.requires_grad_(True).named_parameters(), strict=True)
        side = self.image_encoder.config.image_size
        tokens = self.embedding_optimizer.encode_image(self.image_encoder, torch.zeros(1, 3, side, side))
        for name, grad in zip(names, torch.autograd.grad(tokens.sum(), weights, allow_unused=True), strict=True):
            self.image_encoder.get_parameter(name).requires_grad_(grad is not None)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The adapter (and image encoder, if trained) at the learning rate, the UNet's part at its multiple.

        Biases, norms, queries and the null embedding are kept from weight decay.
        """
        scales = {"embedding_optimizer": 1.0}
        if any(p.requires_grad for p in self.image_encoder.parameters()):
            scales["image_encoder"] = 1.0
        if self.tuned:
            scales["unet"] = self.unet_lr_scale
        inputs = {id(p) for name, p in self.named_parameters() if name.rpartition(".")[2] in _NO_DECAY}
        return _spare(inputs, named_groups(self, scales))

    def setup(self, stage: str) -> None:
        """Check that data and model preprocess references alike; fill and use the feature cache.

        Raises:
            InputError: If they do not, or the training data or its changes cannot be cached.
        """
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            check_processor(self.feature_extractor, data)
            self.processing_resolution = getattr(data, "size", None)
        if stage == "fit" and self.feature_cache:
            use_feature_cache(self, data, self.feature_cache)

    # Objective

    def condition(self, batch: Mapping[str, Any]) -> Tensor:
        """Conditioning tokens (B,K,X) of a batch's references."""
        tokens = batch.get("object_tokens")
        if tokens is None:
            tokens = self.embedding_optimizer.encode_image(self.image_encoder, batch["object"])
        return self.embedding_optimizer(tokens)

    @torch.no_grad()
    def encode_triplet(self, batch: Mapping[str, Any], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents of target (sampled, scaled) and scene (mode, unscaled), each (B,C,h,w)."""
        if "target_moments" in batch:
            posterior = DiagonalGaussianDistribution(batch["target_moments"])
            scene = batch["scene_latents"]
        else:
            posterior = self.vae.encode(batch["target"]).latent_dist
            scene = self.vae.encode(batch["source"]).latent_dist.mode()
        return posterior.sample(generator) * self.vae.config["scaling_factor"], scene

    @torch.no_grad()
    def encode_features(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the frozen encoders make of a batch, for the feature cache.

        Returns:
            "target_moments" (B,2C,h,w), mean and log-variance; "scene_latents" (B,C,h,w); "object_tokens" (B,N,D)
            if the batch has references.
        """
        features = {
            "target_moments": self.vae.encode(batch["target"]).latent_dist.parameters,
            "scene_latents": self.vae.encode(batch["source"]).latent_dist.mode(),
        }
        if "object" in batch:
            features["object_tokens"] = self.embedding_optimizer.encode_image(self.image_encoder, batch["object"])
        return features

    def compute_loss(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Denoising error with conditioning dropout; see :func:`denoising_error` and :func:`weighted_loss`."""
        target_latents, scene_latents = self.encode_triplet(batch, generator)
        states = self.condition(batch)
        dropped = draw_dropout(len(states), self.conditioning_dropout, generator)
        states = torch.where(dropped.object[:, None, None], self.embedding_optimizer.null(len(states)), states)
        denoised = denoising_error(
            self.unet,
            self.scheduler,
            target_latents=target_latents,
            scene_latents=scene_latents.masked_fill(dropped.scene[:, None, None, None], 0),
            states=states,
            generator=generator,
        )
        if not self.training:
            level = denoised.timesteps * QUARTERS // self.scheduler.config.num_train_timesteps
            for quarter, metric in enumerate(self._quarters()):
                metric.update(denoised.error.mean((1, 2, 3)), (level == quarter).float())
        return weighted_loss(
            denoised,
            self.scheduler,
            mask=batch.get("mask"),
            mask_weight=self.mask_weight,
            snr_gamma=self.snr_gamma,
        )

    def on_validation_epoch_end(self) -> None:
        """Log the error by noise level: quarter 1 has the least noise."""
        self._log_quarters("val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The loss, and an insertion into every scene, compared with the target and, outside the mask, the scene."""
        super().test_step(batch, batch_idx)
        results = torch.stack(self.insert(batch, self._generator(-1 - batch_idx)))
        self.fidelity.update(results, batch["target"])
        self.preservation.update(batch["source"], results, batch["mask"])

    def on_test_epoch_end(self) -> None:
        """Log the error by noise level, and of the pictures L1, PSNR, SSIM and the PSNR of the background."""
        self._log_quarters("test")
        figures = {**self.fidelity.compute(), "background_psnr": self.preservation.compute()["psnr"]}
        self.log_dict({f"test/{name}": value.float() for name, value in figures.items()})
        self.fidelity.reset()
        self.preservation.reset()

    def _quarters(self) -> list[MeanMetric]:
        return list(self.quarters)  # type: ignore[arg-type]

    def _log_quarters(self, split: str) -> None:
        for quarter, metric in enumerate(self._quarters(), 1):
            value = metric.compute() if metric.update_called else torch.tensor(torch.nan)
            if torch.isfinite(value):
                self.log(f"{split}/loss_quarter{quarter}", value)
            metric.reset()

    # Pictures

    @torch.no_grad()
    def insert(self, batch: Mapping[str, Any], generator: torch.Generator) -> list[Tensor]:
        """Sample a result for each scene of a batch, as (3,H,W) in [-1,1], with nothing of the photo put back."""
        pipeline = InsertPipeline.from_parts(self)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.set_scheduler("ddim")
        seeds = torch.randint(2**62, (batch_length(batch),), generator=generator, device=generator.device)
        height, width = batch["source"].shape[-2:]
        images = pipeline(
            image=batch["source"],
            object_pixel_values=batch["object"],
            generator=[torch.Generator(self.device).manual_seed(int(s)) for s in seeds],
            height=height,
            width=width,
            output_type="pt",
            preserve_background=False,
            **dataclasses.asdict(self.sampling),
        ).images
        return [image * 2 - 1 for image in images]

    def sample_grid(self, batch: Mapping[str, Any], generator: torch.Generator) -> list[list[Any]]:
        """Rows of source, reference, result, target."""
        references = self._pictures(batch["object"])
        results = self.insert(batch, generator)
        columns = (batch["source"], references, results, batch["target"])
        return [list(row) for row in zip(*columns, strict=True)]

    def _pictures(self, pixel_values: Tensor) -> Tensor:
        """CLIP-normalised references (B,3,S,S) as pictures in [-1,1]."""
        mean = pixel_values.new_tensor(self.feature_extractor.image_mean)[:, None, None]
        std = pixel_values.new_tensor(self.feature_extractor.image_std)[:, None, None]
        return (pixel_values * std + mean) * 2 - 1

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Results of a batch: "id", and "image" as (3,H,W) tensors in [-1,1]."""
        return {"id": list(batch["id"]), "image": self.insert(batch, self._generator(-1 - batch_idx))}

    # Artefact

    def export(self, folder: str | Path) -> None:
        """Write the model as a pipeline folder; LoRA is merged into the UNet.

        Adapters that other projects know are written in their layout too, beside the adapter's own file.
        """
        parts = InsertParts(
            vae=self.vae,
            unet=merge_lora(self.unet) if has_lora(self.unet) else self.unet,
            scheduler=self.scheduler,
            image_encoder=self.image_encoder,
            feature_extractor=self.feature_extractor,
            embedding_optimizer=self.embedding_optimizer,
            tuned=self.tuned,
            sampling=self.sampling,
            processing_resolution=self.processing_resolution,
        )
        InsertPipeline.from_parts(parts).save_pretrained(folder)
        name = NAMES.get(self.embedding_optimizer.config["mode"])
        if name is not None:
            save_original(self.embedding_optimizer, Path(folder) / "embedding_optimizer" / name)


def _spare(inputs: set[int], groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Move the parameters with these ids to their group's sibling without weight decay."""
    result: dict[str, dict[str, Any]] = {}
    for group in groups:
        decays = "weight_decay" not in group
        for p in group["params"]:
            spared = decays and id(p) in inputs
            name = f"{group['name']}/no_decay" if spared else group["name"]
            empty = {**group, "name": name, "params": [], **({"weight_decay": 0.0} if spared else {})}
            result.setdefault(name, empty)["params"].append(p)
    return list(result.values())
