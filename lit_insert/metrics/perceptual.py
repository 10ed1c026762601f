"""A perceptual distance that losses may use."""

from torch import Tensor, nn
from torch.nn import functional as F

from lit_insert.errors import InputError


class Lpips(nn.Module):
    """Perceptual distance of a frozen VGG (Zhang et al. 2018), through torchmetrics; (B,).

    Pictures below 224 pixels are enlarged to that. Fetches torchvision's VGG weights on first use.

    Raises:
        InputError: If the weights cannot be had.
    """

    def __init__(self) -> None:
        super().__init__()
        from torchmetrics.functional.image.lpips import _LPIPS

        try:
            self.net = _LPIPS(pretrained=True, net="vgg").eval().requires_grad_(False)
        except (OSError, ImportError, RuntimeError) as error:
            raise InputError(
                f"lpips needs torchvision's VGG-16 weights, which cannot be had here ({error}); put "
                "vgg16-397923af.pth into torch.hub's checkpoints folder, or train without it"
            ) from error

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of two batches (B,3,H,W) in [-1,1]."""
        if min(a.shape[-2:]) < 224:
            a, b = (F.interpolate(x, size=(224, 224), mode="bilinear") for x in (a, b))
        return self.net(a, b).flatten()
