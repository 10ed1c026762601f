"""LightningModules that train the frozen parts of the pocket models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lit_insert.metrics.insertion import InsertionJudge, crop_around, find_change
from lit_insert.training.base import BaseModule


class AutoencoderModule(BaseModule):
    """A small variational autoencoder for the latent space of the pocket models.

    Loss: L1 + L2 reconstruction plus a light KL term, on source and target scenes alike. Stable Diffusion's
    convention for the latent scale is kept: ``export`` measures it and writes it into the config.

    Args:
        block_out_channels: Width of each resolution; n widths give a 2^(n-1)-fold smaller grid.
        latent_channels: Channels of the latent.
        kl_weight: Weight of the KL term, per latent number.
        optimizer: Makes the optimiser from parameter groups.
        lr_scheduler: Makes the scheduler, stepped every optimiser step.
        noise_seed: Seed of the posterior samples.
    """

    def __init__(
        self,
        block_out_channels: list[int] | None = None,
        latent_channels: int = 4,
        kl_weight: float = 1e-4,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, noise_seed)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        widths = tuple(block_out_channels or (16, 32))
        self.kl_weight = kl_weight
        self.vae = AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            latent_channels=latent_channels,
            norm_num_groups=8,
            layers_per_block=1,
            mid_block_add_attention=False,
        )
        self.register_buffer("moments", torch.zeros(2))

    def compute_loss(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Reconstruct half a batch of sources and half of targets."""
        half = len(batch["source"]) // 2
        image = torch.cat([batch["source"][:half], batch["target"][half:]])
        posterior = self.vae.encode(image).latent_dist
        latent = posterior.sample(generator)
        error = (self.vae.decode(latent).sample.float() - image).float()
        kl = posterior.kl().mean() / latent[0].numel()
        with torch.no_grad():
            mean = posterior.mean.float()
            self.moments.lerp_(torch.stack([mean.mean(), mean.std()]), 0.05)
        mse = error.square().mean()
        return {
            "loss": error.abs().mean() + 4 * mse + self.kl_weight * kl,
            "psnr": 10 * torch.log10(4 / mse.detach()),
            "kl": kl.detach(),
            "std": self.moments[1].clone(),
        }

    def export(self, folder: str | Path) -> None:
        """Write the autoencoder as a diffusers folder."""
        self.vae.register_to_config(scaling_factor=float(1 / self.moments[1]))
        self.vae.save_pretrained(folder)


class JudgeModule(BaseModule):
    """Train the judge that scores insertions, on ground truth with the blur and noise that decoders leave.

    Args:
        optimizer: Makes the optimiser from parameter groups.
        lr_scheduler: Makes the scheduler, stepped every optimiser step.
        noise_seed: Seed of blur, noise and shifts.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, noise_seed)
        self.judge = InsertionJudge()

    def compute_loss(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy of the three labels; accuracy of each beside it."""
        source, result = batch["source"], batch["target"]
        change = find_change(source, result)
        n = len(result)
        shift = (torch.rand(n, 2, generator=generator) - 0.5) * 3
        crops = crop_around(result, change.center + shift.to(change.center))
        if self.training:
            blurred = torch.nn.functional.avg_pool2d(crops, 3, stride=1, padding=1, count_include_pad=False)
            amount = torch.rand(n, 1, 1, 1, generator=generator)
            crops = crops.lerp(blurred, amount) + 0.08 * amount * torch.randn(crops.shape, generator=generator)
        logits = self.judge(crops)
        losses = [
            torch.nn.functional.cross_entropy(head.float(), batch["label"][:, i]) for i, head in enumerate(logits)
        ]
        names = ("shape", "color", "texture")
        right = {
            name: (head.argmax(-1) == batch["label"][:, i]).float().mean()
            for i, (name, head) in enumerate(zip(names, logits, strict=True))
        }
        return {"loss": torch.stack(losses).sum(), **right}

    def export(self, folder: str | Path) -> None:
        """Write the judge as a folder of config and safetensors."""
        self.judge.save_pretrained(folder)
