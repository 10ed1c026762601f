"""Masked-autoencoder pre-training of the encoder: guess most of a picture from the rest of it."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from timm.models.hiera import Hiera
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lit_insert.errors import InputError
from lit_insert.mask_decoder.encoder import DYNAMIC, as_size, make_encoder, widths
from lit_insert.mask_decoder.network import IMAGENET_MEAN, IMAGENET_STD

UNIT = 32  # pixels along a mask unit: what is hidden, is hidden whole
PATCH = 16  # pixels along what the decoder draws at once


class Reconstruction(NamedTuple):
    """What `HieraMAE` returns, by patches of 16x16 pixels in reading order, N = H·W/256.

    ``prediction`` (B,N,768) is of normalised pixels; ``hidden`` (B,N) is true where the encoder saw nothing.
    """

    prediction: Tensor
    hidden: Tensor


class HieraMAE(ModelMixin, ConfigMixin):
    """A Hiera with a light decoder that draws what was hidden from it (Ryali et al. 2023, section 3; He et al. 2022).

    Hidden units never enter the encoder, which makes pre-training cheap. The maps of all stages are brought to the
    coarsest grid and added up; a few plain transformer blocks at a narrow width do the drawing, and are thrown away
    afterwards. While pre-training the last stage does not pool, so that what is drawn are patches of 16 rather than
    32 pixels; the weights are the same.

    Only the families with masking in timm can be pre-trained: hiera_* and hiera_*_abswin_256. The attention windows
    of hieradet_* and sam2_hiera_* need whole maps.

    Args:
        encoder: timm's name of the encoder.
        encoder_kwargs: Arguments of timm's class; give `HieraFPN` the same.
        img_size: Side, or height and width, in pixels; multiples of 32.
        decoder_width: Width of the decoder.
        decoder_depth: Its blocks.
        decoder_heads: Its attention heads.
        image_mean: Of each channel in [0,1].
        image_std: The same.

    Raises:
        InputError: If the encoder cannot be masked, or an argument does not fit.
    """

    @register_to_config
    def __init__(
        self,
        encoder: str = "hiera_tiny_224",
        encoder_kwargs: dict[str, Any] | None = None,
        img_size: int | Sequence[int] = 224,
        decoder_width: int = 256,
        decoder_depth: int = 4,
        decoder_heads: int = 8,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if decoder_width % decoder_heads:
            raise InputError(f"decoder_heads={decoder_heads} does not divide decoder_width={decoder_width}")
        if encoder.startswith(DYNAMIC):
            raise InputError(
                f"encoder is {encoder!r}, which timm cannot mask; pre-train a hiera_* or hiera_*_abswin_256"
            )
        backbone = make_encoder(encoder, img_size, {**(encoder_kwargs or {}), "q_pool": 2})
        assert isinstance(backbone, Hiera)
        self.backbone: Hiera = backbone
        self.grid = [side // PATCH for side in as_size(img_size)]
        if len(backbone.stage_ends) != 4 or math.prod(backbone.mask_spatial_shape) != math.prod(self.grid) // 4:
            raise InputError("encoder_kwargs: pre-training needs four stages and mask units of 32 pixels")
        per_unit = UNIT // PATCH
        sides = [8, 4, per_unit, per_unit]
        self.fuse = nn.ModuleList(
            nn.Conv2d(width, decoder_width, side // per_unit, side // per_unit)
            for width, side in zip(widths(self.backbone), sides, strict=True)
        )
        self.norm = nn.LayerNorm(decoder_width)
        self.mask_token = nn.Parameter(torch.randn(decoder_width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, self.grid[0] * self.grid[1], decoder_width) * 0.02)
        self.blocks = nn.ModuleList(Block(decoder_width, decoder_heads, qkv_bias=True) for _ in range(decoder_depth))
        self.norm_out = nn.LayerNorm(decoder_width)
        self.out = nn.Linear(decoder_width, 3 * PATCH**2)

    def normalize(self, image: Tensor) -> Tensor:
        """Pictures (…,3,H,W) in [-1,1] as the pixel values that `forward` takes."""
        mean, std = (image.new_tensor(self.config[k])[:, None, None] for k in ("image_mean", "image_std"))
        return ((image + 1) / 2 - mean) / std

    def draw_kept(self, batch_size: int, mask_ratio: float, generator: torch.Generator) -> Tensor:
        """Choose the mask units that the encoder sees, as many in each picture, at least one.

        Args:
            batch_size: Pictures.
            mask_ratio: Part that is hidden.
            generator: On the device of the result.

        Returns:
            bool (B,U), U = H·W/1024, true where seen.
        """
        units = self.grid[0] * self.grid[1] // (UNIT // PATCH) ** 2
        count = min(max(1, round(units * (1 - mask_ratio))), units)
        order = torch.rand(batch_size, units, generator=generator, device=generator.device).argsort(1)
        return order < count

    def encode(self, pixel_values: Tensor, kept: Tensor) -> Tensor:
        """Fused features of the units that are seen: (B,K,2,2,decoder_width), units in reading order."""
        _, maps = self.backbone.forward_features(pixel_values, mask=kept, return_intermediates=True)
        fused: Tensor | None = None
        for fuse, x in zip(self.fuse, maps, strict=True):
            x = fuse(x.flatten(0, 1).permute(0, 3, 1, 2))
            fused = x if fused is None else fused + x
        assert fused is not None
        return self.norm(fused.permute(0, 2, 3, 1)).unflatten(0, maps[0].shape[:2])

    def forward(self, pixel_values: Tensor, kept: Tensor) -> Reconstruction:
        """Draw pictures (B,3,H,W) of the configured size from the units ``kept`` (B,U) of them."""
        seen = self.encode(pixel_values, kept)
        batch, per_unit = len(seen), UNIT // PATCH
        units = self.mask_token.to(seen.dtype).expand(batch, kept.shape[1], per_unit, per_unit, -1).clone()
        units[kept] = seen.flatten(0, 1)
        x = self._in_order(units) + self.positions
        for block in self.blocks:
            x = block(x)
        hidden = self._in_order((~kept)[:, :, None, None, None].expand(-1, -1, per_unit, per_unit, 1))
        return Reconstruction(self.out(self.norm_out(x)), hidden[..., 0])

    def _in_order(self, units: Tensor) -> Tensor:
        """(B,U,2,2,C) as (B,N,C), patches of the whole picture in reading order."""
        batch, _, per_unit, _, width = units.shape
        rows, columns = (side // per_unit for side in self.grid)
        x = units.view(batch, rows, columns, per_unit, per_unit, width)
        return x.transpose(2, 3).reshape(batch, -1, width)


def patchify(image: Tensor) -> Tensor:
    """Pictures (B,3,H,W) as patches (B,N,768) in reading order."""
    return nn.functional.unfold(image, PATCH, stride=PATCH).transpose(1, 2)


def unpatchify(patches: Tensor, size: Sequence[int]) -> Tensor:
    """The reverse: patches (B,N,768) as pictures (B,3,H,W)."""
    return nn.functional.fold(patches.transpose(1, 2), tuple(size), PATCH, stride=PATCH)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch's numbers, (B,N,1); flat patches count as of deviation 0.001."""
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def reconstruction_loss(reconstruction: Reconstruction, pixel_values: Tensor) -> Tensor:
    """Mean squared error of hidden patches, each normalised by its own mean and deviation (He et al. 2022, table 1d).

    Args:
        reconstruction: From `HieraMAE`.
        pixel_values: The whole pictures, (B,3,H,W).
    """
    patches = patchify(pixel_values.float())
    mean, deviation = patch_statistics(patches)
    error = (reconstruction.prediction.float() - (patches - mean) / deviation).square().mean(-1)
    hidden = reconstruction.hidden.float()
    return (error * hidden).sum() / hidden.sum().clamp(min=1)
