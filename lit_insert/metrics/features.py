"""A frozen feature network of our own: no download, no training, the same on every machine."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init


class RandomFeatures(nn.Module):
    """Statistics of random convolutions at three scales.

    Fréchet and kernel distances on these features tell sets of pictures apart by colour, contrast, edges, textures and
    their combinations. They are comparable only with themselves: never with distances on Inception features.

    Args:
        widths: Channels of the scales; each halves the picture.
        seed: Of the filters.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.convolutions = nn.ModuleList()
        channels = 3
        for width in widths:
            # not initialised by PyTorch, which would draw from the global generator
            layer = skip_init(nn.Conv2d, channels, width, 3, padding=1, padding_mode="replicate")
            with torch.no_grad():
                spread = (2 / (9 * channels)) ** 0.5  # keeps the size of activations through ReLU
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * spread)
                layer.bias = nn.Parameter(torch.randn(width, generator=generator) * 0.1)
            self.convolutions.append(layer)
            channels = width
        self.num_features = 2 * sum(widths)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "RandomFeatures":
        """It has no training mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features (N,D) of pictures (N,3,H,W) in [-1,1], H and W at least 8: mean and spread of every channel."""
        found, x = [], images.float()
        for layer in self.convolutions:
            x = layer(x).relu()
            found += [x.mean((2, 3)), x.std((2, 3))]
            x = F.avg_pool2d(x, 2)
        return torch.cat(found, dim=1)
