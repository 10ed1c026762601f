"""From the encoder's maps to logits at the picture's full size."""

from collections.abc import Sequence

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_WIDTH = 64  # channels of an attention head in the bottleneck


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, group norm (groups of at least 4 channels, at most 8 groups), GELU."""
    groups = next(g for g in (8, 4, 2, 1) if outputs % g == 0 and (outputs // g >= 4 or g == 1))
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.GroupNorm(groups, outputs), nn.GELU()
    )


class Bottleneck(nn.Module):
    """Plain transformer blocks (Dosovitskiy et al. 2021) on a map, every place attending to every other.

    They know places from what the encoder put into its features; there is no embedding of their own.

    Args:
        width: Channels of the map.
        depth: Blocks.
        heads: Attention heads; by default one for every 64 channels.
    """

    def __init__(self, width: int, depth: int, heads: int | None = None) -> None:
        super().__init__()
        heads = heads or max(1, width // HEAD_WIDTH)
        if width % heads:
            raise ValueError(f"bottleneck_heads={heads} does not divide the coarsest map's {width} channels")
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B,C,h,w) to the same shape."""
        size = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.transpose(1, 2).unflatten(2, size)


class Upsample(nn.Module):
    """Learned upsampling by two: each place writes a 2x2 block (sub-pixel convolution, Shi et al. 2016).

    The four start out equal, so that the untrained layer repeats pixels and draws no checkerboard.

    Args:
        inputs: Channels of the map.
        outputs: Channels of the result.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 4 * outputs, 1)
        with torch.no_grad():
            self.conv.weight.copy_(self.conv.weight[::4].repeat_interleave(4, 0))
            bias: Tensor = self.conv.bias  # type: ignore[assignment]
            bias.copy_(bias[::4].repeat_interleave(4, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B,inputs,h,w) to (B,outputs,2h,2w)."""
        return F.pixel_shuffle(self.conv(x), 2)


class FPNDecoder(nn.Module):
    """Feature pyramid (Lin et al. 2017) down to stride 4, then two learned steps to stride 1.

    Coarse maps are enlarged and added to the finer ones' projections; a shallow stem of the picture itself joins at
    strides 2 and 1, where the encoder has no map and outlines are decided. What runs at full size is narrow, because
    it costs the most.

    Args:
        inputs: Channels of the encoder's maps, finest first.
        channels: Width of the pyramid.
        fine_channels: Widths at stride 2 and at stride 1.
    """

    def __init__(self, inputs: Sequence[int], channels: int = 128, fine_channels: Sequence[int] = (32, 16)) -> None:
        super().__init__()
        half, full = fine_channels
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in inputs)
        self.merge = nn.ModuleList(conv_norm(channels, channels) for _ in inputs[:-1])
        self.stem_full = nn.Conv2d(3, full, 3, padding=1)
        self.stem_half = nn.Conv2d(full, half, 3, stride=2, padding=1)
        self.to_half = Upsample(channels, half)
        self.merge_half = conv_norm(half, half)
        self.to_full = Upsample(half, full)
        self.merge_full = conv_norm(full, full)
        self.head = nn.Conv2d(full, 1, 1)

    def forward(self, maps: Sequence[Tensor], pixel_values: Tensor) -> Tensor:
        """Logits (B,1,H,W) from the encoder's maps and the picture (B,3,H,W) that they are of."""
        x = self.lateral[-1](maps[-1])
        for lateral, merge, shortcut in zip(
            reversed(self.lateral[:-1]), reversed(self.merge), reversed(maps[:-1]), strict=True
        ):
            finer = lateral(shortcut)
            x = merge(finer + F.interpolate(x, finer.shape[-2:], mode="bilinear", align_corners=False))
        full = self.stem_full(pixel_values)
        half = self.stem_half(F.gelu(full))
        x = self.merge_half(fit(self.to_half(x), half) + half)
        x = self.merge_full(fit(self.to_full(x), full) + full)
        return self.head(x)


def fit(x: Tensor, like: Tensor) -> Tensor:
    """Resize to another map's height and width, where they differ (an encoder of another stride)."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


class PresenceHead(nn.Module):
    """Whether there is anything of the class in the picture, from mean and maximum of the coarsest map.

    The maximum keeps small things from drowning in the mean.

    Args:
        width: Channels of the map.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.hidden = nn.Linear(2 * width, width)
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B,) from a map (B,C,h,w)."""
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        return self.out(F.gelu(self.hidden(self.norm(pooled))))[:, 0]
