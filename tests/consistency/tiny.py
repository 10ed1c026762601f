"""Small networks, exact functions of Gaussian data, and pictures for the tests of this folder."""

import lightning.pytorch as pl
import torch
from diffusers import UNet2DModel

from lit_insert.consistency.edm import expand
from lit_insert.consistency.network import build_unet
from lit_insert.data.loading import resumable_loader

NETWORK = {
    "image_size": 8,
    "channels": 8,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [4],
    "head_dim": 8,
    "norm_groups": 4,
    "resblock_updown": False,
}


def unet(seed: int = 0, **options) -> UNet2DModel:
    """A network of some ten thousand random weights."""
    torch.manual_seed(seed)
    return build_unet(**{**NETWORK, **options}).eval()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_denoiser(mean: float, variance: float):
    """The exact denoiser of pictures whose numbers are independent N(mean, variance)."""
    return lambda x, sigma, label=None: mean + (x - mean) * expand(variance / (variance + sigma.square()), x)


def gaussian_consistency(mean: float, variance: float, sigma_min: float):
    """Their exact consistency function: f(x,s) = m + (x - m) sqrt((v + e^2)/(v + s^2))."""

    def f(x, sigma, label=None):
        return mean + (x - mean) * expand(((variance + sigma_min**2) / (variance + sigma.square())).sqrt(), x)

    return f


class Pictures(pl.LightningDataModule):
    """Smooth random 8 x 8 pictures with labels.

    Args:
        length: Training samples.
        batch_size: Samples per step and rank.
        classes: Number of classes.
    """

    def __init__(self, length: int = 24, batch_size: int = 4, classes: int = 0) -> None:
        super().__init__()
        self.length, self.batch_size, self.num_classes = length, batch_size, classes

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, epoch: int) -> dict:
        coarse = torch.rand(1, 3, 2, 2, generator=seeded(index)) * 2 - 1
        image = torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")[0]
        label = {"label": torch.tensor(index % self.num_classes)} if self.num_classes else {}
        return {"image": image, "id": f"p{index}", **label}

    def train_dataloader(self):
        return resumable_loader(self, self.batch_size, 0, shuffle=True)

    def val_dataloader(self):
        return resumable_loader(self, self.batch_size, 0, shuffle=False)
