"""Training of the embedding optimizer on insertion triplets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from lit_insert.diffusion.frozen import load_part, resolve_base
from lit_insert.diffusion.unet import select_parameters, widen_conv_in
from lit_insert.embedding_optimizer.network import EmbeddingOptimizer
from lit_insert.embedding_optimizer.objective import draw_dropout, insertion_loss
from lit_insert.training.base import BaseModule, frozen


@dataclass
class UnetTuning:
    """What of the UNet trains beside the adapter.

    Args:
        target: "attn2" (cross-attention), "attn2.kv" (its key and value projections), "all" or "none".
        blocks: UNet blocks it applies to, such as "mid_block"; empty means every block that has any.
        lr_scale: Learning rate of these parameters in multiples of the adapter's.
    """

    target: Literal["attn2", "attn2.kv", "all", "none"] = "attn2"
    blocks: list[str] = field(default_factory=list)
    lr_scale: float = 0.1


class EmbeddingOptimizerModule(BaseModule):
    """Learn to insert the object of a reference picture into a scene, with no mask and no prompt.

    Args:
        base: InstructPix2Pix-layout folder or hub id (vae/, unet/, scheduler/), or "pocket".
        image_encoder: CLIP vision folder or hub id; by default the base's own image_encoder/.
        adapter: EmbeddingOptimizer arguments; sizes left out are taken from the base. Null keeps the adapter
            that the base already has.
        unet: What of the UNet trains.
        train_image_encoder: Train the image encoder too; only for building small bases.
        conditioning_dropout: Probability of dropping the object, the scene, and both (each).
        mask_weight: Extra loss weight of the inserted region; 0 for none.
        snr_gamma: γ of min-SNR weighting; null for none.
        gradient_checkpointing: Trade UNet time for memory.
        optimizer: Makes the optimiser from parameter groups.
        lr_scheduler: Makes the scheduler, stepped every optimiser step.
        noise_seed: Seed of the noise, timesteps and dropout drawn while training.

    Raises:
        InputError: If a part of the base is missing or the UNet tuning matches nothing.
    """

    def __init__(
        self,
        base: str = "pocket",
        image_encoder: str | None = None,
        adapter: dict[str, Any] | None = None,
        unet: UnetTuning = UnetTuning(),  # noqa: B008
        train_image_encoder: bool = False,
        conditioning_dropout: float = 0.05,
        mask_weight: float = 0.0,
        snr_gamma: float | None = None,
        gradient_checkpointing: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, noise_seed)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.base = resolve_base(base)
        self.conditioning_dropout = conditioning_dropout
        self.mask_weight, self.snr_gamma = mask_weight, snr_gamma
        self.scheduler = load_part(DDPMScheduler, self.base, "scheduler")
        self.vae = frozen(load_part(AutoencoderKL, self.base, "vae"))
        self.unet = frozen(widen_conv_in(load_part(UNet2DConditionModel, self.base, "unet")))
        self.image_encoder = frozen(
            load_part(
                CLIPVisionModelWithProjection,
                resolve_base(image_encoder) if image_encoder else self.base,
                None if image_encoder else "image_encoder",
            )
        )
        if adapter is None:
            self.embedding_optimizer = load_part(EmbeddingOptimizer, self.base, "embedding_optimizer")
        else:
            sizes = {
                "input_dim": self.image_encoder.config.hidden_size,
                "output_dim": self.unet.config["cross_attention_dim"],
            }
            self.embedding_optimizer = EmbeddingOptimizer(**{**sizes, **adapter})
        self.unet_lr_scale = unet.lr_scale
        self.tuned = [] if unet.target == "none" else select_parameters(self.unet, unet.blocks, unet.target)
        for name in self.tuned:
            self.unet.get_parameter(name).requires_grad_(True)
        self.image_encoder.requires_grad_(train_image_encoder)
        self.embedding_optimizer.requires_grad_(True).train()
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The adapter (and image encoder, if trained) at the learning rate, the UNet's part at its multiple."""
        lr = self.optimizer_lr()
        own = [
            p for m in (self.embedding_optimizer, self.image_encoder) for p in m.parameters() if p.requires_grad
        ]
        groups: list[dict[str, Any]] = [{"params": own, "name": "adapter"}]
        if self.tuned:
            tuned = [self.unet.get_parameter(name) for name in self.tuned]
            groups.append({"params": tuned, "name": "unet", "lr": lr * self.unet_lr_scale})
        return groups

    def optimizer_lr(self) -> float:
        """Learning rate that the configured optimiser would use."""
        return float(self.optimizer_factory([torch.nn.Parameter(torch.zeros(1))]).defaults["lr"])

    def condition(self, pixel_values: Tensor) -> Tensor:
        """Conditioning tokens (B,K,X) of CLIP-normalised references (B,3,S,S)."""
        return self.embedding_optimizer(
            self.embedding_optimizer.encode_image(self.image_encoder, pixel_values)
        )

    @torch.no_grad()
    def encode_triplet(self, batch: Mapping[str, Any], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents of target (sampled, scaled) and scene (mode, unscaled), each (B,C,h,w)."""
        target = self.vae.encode(batch["target"]).latent_dist.sample(generator)
        scene = self.vae.encode(batch["source"]).latent_dist.mode()
        return target * self.vae.config["scaling_factor"], scene

    def compute_loss(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Denoising error with conditioning dropout; see :func:`insertion_loss`."""
        target_latents, scene_latents = self.encode_triplet(batch, generator)
        states = self.condition(batch["object"])
        dropped = draw_dropout(len(states), self.conditioning_dropout, generator)
        states = torch.where(dropped.object[:, None, None], self.embedding_optimizer.null(len(states)), states)
        scene_latents = scene_latents.masked_fill(dropped.scene[:, None, None, None], 0)
        return insertion_loss(
            self.unet,
            self.scheduler,
            target_latents=target_latents,
            scene_latents=scene_latents,
            states=states,
            generator=generator,
            mask=batch.get("mask"),
            mask_weight=self.mask_weight,
            snr_gamma=self.snr_gamma,
        )

    def export(self, folder: str | Path) -> None:
        """Write what was trained as a pipeline folder."""
        from lit_insert.embedding_optimizer.pipeline import InsertPipeline

        InsertPipeline.from_parts(self).save_pretrained(folder)
