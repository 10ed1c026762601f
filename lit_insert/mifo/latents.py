"""Latents of pictures that come again and again: a frozen encoder needs to see each of them once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class LatentCache:
    """Posteriors of an autoencoder by the pictures' names, kept in memory until it is full.

    Args:
        size: Posteriors kept. One picture has two, mirrored and not, more if it is moved about, and each class
            picture one.
    """

    def __init__(self, size: int = 512) -> None:
        self.size = size
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def draw(self, vae: Any, images: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
        """A sample of each picture's posterior, times the autoencoder's scaling factor.

        Args:
            vae: An ``AutoencoderKL``, frozen.
            images: (B,3,H,W) in [-1,1].
            names: A name for each; the same name always means the same picture.
            generator: Source of the noise.

        Returns:
            (B,C,h,w), float32.
        """
        moments = []
        for image, name in zip(images, names, strict=True):
            found = self.known.get(name)
            if found is None:
                posterior = vae.encode(image[None]).latent_dist
                found = torch.stack([posterior.mean, posterior.std])[:, 0].float()
                if len(self.known) < self.size:
                    self.known[name] = found
            moments.append(found)
        mean, std = torch.stack(moments, dim=1)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return (mean + std * noise) * vae.config["scaling_factor"]
