"""The adversary of the decoder's training: frozen features, light trained heads, and what both are shown."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from transformers import ViTConfig, ViTModel

from lit_insert.artifacts.hub import pull_model
from lit_insert.artifacts.resolve import resolve_model
from lit_insert.artifacts.weights import load_component
from lit_insert.diffusion.noise import Draws

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class AdversarySettings:
    """How the decoder is trained against a discriminator.

    Args:
        backbone: Folder or hub id of the frozen ViT whose tokens are judged, such as facebook/dino-vits8.
        backbone_config: Instead, arguments of transformers' ViTConfig, for random features.
        layers: Its layers that get a head each, the last being ``num_hidden_layers``.
        weight: Of the adversarial term, on top of the adaptive one.
        discriminator_from: Optimiser step at which the discriminator begins to learn.
        generator_from: Optimiser step at which the decoder begins to be trained against it.
        translation: Largest shift of what both are shown, as a fraction of the picture.
    """

    backbone: str | None = None
    backbone_config: dict[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...] = (2, 5, 8, 11, 12)
    weight: float = 0.75
    discriminator_from: int = 0
    generator_from: int = 0
    translation: float = 0.125


class LocalBatchNorm(nn.Module):
    """Batch norm over groups of samples, with no running statistics.

    Args:
        channels: Number of channels.
        group: Samples that are normalised together, where the batch has a multiple of it; else all of them.
    """

    def __init__(self, channels: int, group: int = 8) -> None:
        super().__init__()
        self.group = group
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,L) to (N,C,L)."""
        n, channels, length = x.shape
        size = self.group if n % self.group == 0 else n
        grouped = x.view(n // size, size, channels, length).float()
        mean = grouped.mean((1, 3), keepdim=True)
        var = grouped.var((1, 3), keepdim=True, unbiased=False)
        normal = ((grouped - mean) * (var + 1e-5).rsqrt()).view_as(x).to(x.dtype)
        return normal * self.weight[:, None] + self.bias[:, None]


def _stage(channels: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, padding_mode="circular")
    return nn.Sequential(spectral_norm(conv), LocalBatchNorm(channels), nn.LeakyReLU(0.2))


class Head(nn.Module):
    """A verdict on every token of one layer (Sauer et al. 2023).

    Args:
        channels: Of the tokens.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _stage(channels, 1), _stage(channels, 9)
        self.verdict = spectral_norm(nn.Conv1d(channels, 1, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """(N,C,L) to (N,L)."""
        x = self.first(tokens)
        return self.verdict((x + self.second(x)) / 2**0.5)[:, 0]


class Discriminator(nn.Module):
    """Heads on the tokens of several layers of a frozen ViT.

    Args:
        settings: Which ViT, and which of its layers.

    Raises:
        InputError: If the ViT cannot be had.
    """

    def __init__(self, settings: AdversarySettings) -> None:
        super().__init__()
        if settings.backbone is not None:
            found = resolve_model(settings.backbone)
            folder = pull_model(found.location) if found.kind == "hub" else found.path.resolve()
            backbone = load_component(ViTModel, folder.parent, folder.name)
        else:
            backbone = ViTModel(ViTConfig(**settings.backbone_config), add_pooling_layer=False)
        self.backbone: Any = backbone.eval().requires_grad_(False)
        count = backbone.config.num_hidden_layers
        self.layers = [n for n in settings.layers if n < count] + [count]
        self.layers = sorted(set(self.layers))
        self.heads = nn.ModuleList(Head(backbone.config.hidden_size) for _ in self.layers)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (N,T) of pictures (N,3,H,W) in [0,1], over all tokens and heads."""
        side = self.backbone.config.image_size
        mean, std = (torch.tensor(v, device=pictures.device).view(1, 3, 1, 1) for v in (_MEAN, _STD))
        small = pictures
        if pictures.shape[-2:] != (side, side):
            small = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
        states = self.backbone((small - mean) / std, output_hidden_states=True).hidden_states
        verdicts = [head(states[n][:, 1:].transpose(1, 2)) for n, head in zip(self.layers, self.heads, strict=True)]
        return torch.cat(verdicts, 1)


def augmented(pictures: Tensor, numbers: Tensor, translation: float = 0.125) -> Tensor:
    """Brightness, saturation, contrast and shift of each picture (DiffAugment, Zhao et al. 2020), differentiable.

    Args:
        pictures: (N,3,H,W) in [0,1].
        numbers: Uniform in [0,1), (N,5).
        translation: Largest shift, as a fraction of the picture; what comes in is black.
    """
    u = numbers.to(pictures)[..., None, None, None]
    x = pictures + (u[:, 0] - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (u[:, 1] * 2)
    level = x.mean((1, 2, 3), keepdim=True)
    x = level + (x - level) * (u[:, 2] + 0.5)
    height, width = pictures.shape[-2:]
    reach = torch.tensor([round(translation * height), round(translation * width)], device=x.device)
    shift = (numbers[:, 3:5].to(x.device) * (2 * reach + 1)).floor().long() - reach
    rows = torch.arange(height, device=x.device)[None] + shift[:, :1]
    columns = torch.arange(width, device=x.device)[None] + shift[:, 1:]
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    sample = torch.arange(len(x), device=x.device)[:, None, None]
    moved = x.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
    return moved * inside


def draw_augmentation(draws: Draws) -> Tensor:
    """Numbers (N,5) for `augmented`."""
    return torch.stack([draws.uniform() for _ in range(5)], 1)


def eight_bits(pictures: Tensor) -> Tensor:
    """Pictures clamped to [0,1] and rounded as a file would have them, so that the rounding gives nothing away."""
    return (pictures.detach().clamp(0, 1) * 255).round() / 255


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss: half of mean relu(1 - real) plus mean relu(1 + fake)."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Sequence[Tensor]) -> Tensor:
    """‖∇ L_rec‖ / (‖∇ L_adv‖ + 1e-6) at the last layer, within [0, 1e4] (Esser et al. 2021)."""
    norms = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, last, retain_graph=True)]).norm()
        for loss in (reconstruction, adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-6)).clamp(0, 1e4).detach()
