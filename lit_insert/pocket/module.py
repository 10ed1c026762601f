"""LightningModules that train the frozen parts of the pocket models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from lit_insert.diffusion.frozen import load_part
from lit_insert.embedding_optimizer.network import EmbeddingOptimizer
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

    moments: Tensor

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
        if self.training:
            mean = posterior.mean.detach().float()
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


class ReferenceModule(BaseModule):
    """Teach the image encoder and the adapter to say what a reference shows, before any UNet listens.

    Trained from scratch together with a UNet, the adapter settles on the colour alone and drops the outline, which
    the encoder's tokens do hold. So the first ``grid``² conditioning tokens learn to redraw one patch each of the
    reference, and the rest to name shape, colour and texture.

    Args:
        base: Folder with image_encoder/ and unet/, such as `lit_insert.pocket.blank` writes.
        adapter: EmbeddingOptimizer arguments; sizes left out are taken from the base.
        grid: Patches along a side.
        optimizer: Makes the optimiser from parameter groups.
        lr_scheduler: Makes the scheduler, stepped every optimiser step.
        noise_seed: Seed of the run's random numbers.
    """

    def __init__(
        self,
        base: str,
        adapter: dict[str, Any],
        grid: int = 4,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, noise_seed)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.image_encoder = load_part(CLIPVisionModelWithProjection, base, "image_encoder")
        width = int(UNet2DConditionModel.load_config(base, subfolder="unet")["cross_attention_dim"])
        sizes = {"input_dim": self.image_encoder.config.hidden_size, "output_dim": width}
        self.embedding_optimizer = EmbeddingOptimizer(**{**sizes, **adapter})
        self.grid, self.side = grid, self.image_encoder.config.image_size // grid
        self.draw = nn.Linear(width, 3 * self.side**2)
        self.name = nn.Linear(width, 17)

    def compute_loss(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Squared error of the redrawn patches plus cross-entropy of the names."""
        picture = batch["object"]
        tokens = self.embedding_optimizer(self.embedding_optimizer.encode_image(self.image_encoder, picture))
        count = self.grid**2
        patches = nn.functional.unfold(picture, self.side, stride=self.side).transpose(1, 2)
        drawing = (self.draw(tokens[:, :count]).float() - patches).square().mean()
        logits = self.name(tokens[:, count:].mean(1)).float().split([6, 8, 3], dim=1)
        label = batch["label"]
        naming = sum(nn.functional.cross_entropy(part, label[:, i]) for i, part in enumerate(logits))
        right = {
            name: (part.argmax(1) == label[:, i]).float().mean()
            for i, (name, part) in enumerate(zip(("shape", "color", "texture"), logits, strict=True))
        }
        return {"loss": drawing + 0.3 * naming, "drawing": drawing.detach(), **right}

    def export(self, folder: str | Path) -> None:
        """Write image_encoder/ and embedding_optimizer/."""
        self.image_encoder.save_pretrained(Path(folder) / "image_encoder")
        self.embedding_optimizer.save_pretrained(Path(folder) / "embedding_optimizer")


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
