"""The decoder of the network that came before this one, kept for comparison; see configs/mask_decoder/original_123m."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 8


class OriginalDecoder(nn.Module):
    """Feature pyramid in the manner of AOT (Yang et al. 2021), logits at a quarter of the size.

    Three times: enlarge (corners aligned), add the 1x1-projected shortcut, 3x3 convolution, group norm, ReLU; then one
    1x1 convolution. The original stopped there; here the logits are enlarged bilinearly to the picture's size, because
    all else in this package compares masks at full size.

    Args:
        inputs: Channels of the encoder's four maps, finest first.
        wide: Width of the two coarser steps.
        narrow: Width of the two finer ones.
    """

    def __init__(self, inputs: Sequence[int], wide: int = 256, narrow: int = 128) -> None:
        super().__init__()
        self.conv_in = _conv_norm(inputs[-1], wide, 1)
        self.adapters = nn.ModuleList(
            nn.Conv2d(width, out, 1) for width, out in zip(inputs[-2::-1], (wide, wide, narrow), strict=True)
        )
        self.convs = nn.ModuleList(_conv_norm(*pair, 3) for pair in ((wide, wide), (wide, narrow), (narrow, narrow)))
        self.conv_out = nn.Conv2d(narrow, 1, 1)
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, maps: Sequence[Tensor], pixel_values: Tensor) -> Tensor:
        """Logits (B,1,H,W) from the encoder's maps and the picture (B,3,H,W) that they are of."""
        x = F.relu(self.conv_in(maps[-1]))
        for adapter, conv, shortcut in zip(self.adapters, self.convs, maps[-2::-1], strict=True):
            x = F.interpolate(x, shortcut.shape[-2:], mode="bilinear", align_corners=True)
            x = F.relu(conv(x + adapter(shortcut)))
        return F.interpolate(self.conv_out(x), pixel_values.shape[-2:], mode="bilinear", align_corners=False)


def _conv_norm(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(GROUPS, outputs))
