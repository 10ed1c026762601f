"""Small random models, exact segmenters and drawn pictures for the tests of this folder."""

import numpy as np
import torch
from diffusers import AutoencoderRAE
from PIL import Image

from lit_insert.fusion.latents import LatentSpace
from lit_insert.fusion.network import DiTDH
from lit_insert.segmenters.base import Features, upright

RAE = {
    "encoder_type": "mae",
    "encoder_hidden_size": 64,
    "encoder_patch_size": 4,
    "encoder_num_hidden_layers": 1,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 48,
    "patch_size": 4,
    "encoder_input_size": 32,
}
DIT = {
    "sample_size": 8,
    "in_channels": 64,
    "num_classes": 3,
    "encoder_width": 32,
    "encoder_layers": 2,
    "encoder_heads": 2,
    "head_width": 64,
    "head_layers": 1,
    "head_heads": 2,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def autoencoder(seed: int = 0, **options) -> AutoencoderRAE:
    torch.manual_seed(seed)
    return AutoencoderRAE(**{**RAE, **options}).eval()


def space(seed: int = 0) -> LatentSpace:
    return LatentSpace(autoencoder(seed))


def transformer(seed: int = 0, spread: float = 0.1, **options) -> DiTDH:
    """A network whose zeros are filled, so that it says something."""
    torch.manual_seed(seed)
    net = DiTDH(**{**DIT, **options}).eval()
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(std=spread)
    return net


def scene(width: int = 48, height: int = 32, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(60, 180, (height // 8, width // 8, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def thing(width: int = 20, height: int = 20, colour: tuple[int, int, int] = (230, 40, 30)) -> Image.Image:
    """An opaque disc with alpha."""
    y, x = np.mgrid[:height, :width]
    inside = ((x + 0.5) / width - 0.5) ** 2 + ((y + 0.5) / height - 0.5) ** 2 <= 0.25
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = colour, inside * 255
    return Image.fromarray(pixels)


class Oracle:
    """Finds what it was told: prompt to a function of (rows (H,1), columns (1,W)) in [0,1] to heat."""

    name = "oracle"

    def __init__(self, **maps) -> None:
        self.maps, self.asked = maps, []

    def to(self, device):
        return self

    def encode(self, image, name=None):
        picture = upright(image)
        return Features((picture.height, picture.width), None)

    def heatmaps(self, image, prompts):
        height, width = image.size
        y, x = (torch.arange(height)[:, None] + 0.5) / height, (torch.arange(width)[None] + 0.5) / width
        self.asked += prompts
        return torch.stack([self.maps[p.replace(" ", "_")](y, x).float().expand(height, width) for p in prompts])
