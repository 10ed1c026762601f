"""Bounded attention (Dahary et al. 2024): in its region a thing sees its own words and pixels, and no other thing's."""

from collections.abc import Sequence
from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from lit_insert.mifo.attention import AttentionRecorder, LayerName, layers_of
from lit_insert.mifo.boxes import Box, rasterise
from lit_insert.mifo.prompts import PromptTokens

EndTokens = Literal["everywhere", "subjects", "nowhere"]


class Regions:
    """Which pixels belong to which subject, at any resolution.

    Args:
        boxes: One a subject.
        refined: Boolean (B,S,h,w) in place of the boxes, or None. A subject without any pixel has its box.
    """

    def __init__(self, boxes: Sequence[Box], refined: Tensor | None = None) -> None:
        self.boxes, self.refined = tuple(boxes), refined

    def at(self, height: int, width: int) -> Tensor:
        """Boolean (B or 1, S, height, width)."""
        inside = rasterise(self.boxes, height, width)[None]
        if self.refined is None:
            return inside
        resized = F.interpolate(self.refined.float(), (height, width), mode="nearest-exact").bool()
        empty = ~resized.flatten(2).any(-1)[..., None, None]
        return torch.where(empty, inside.to(resized.device), resized)


def cross_mask(regions: Tensor, tokens: PromptTokens, *, guiding: bool, end_tokens: EndTokens = "subjects") -> Tensor:
    """Which tokens a pixel may see.

    Words of a subject are for the pixels of its region only, function words for none; where regions overlap, a pixel
    sees the words of all that it is in.

    Args:
        regions: Boolean (B,S,h,w).
        tokens: Positions in the prompt.
        guiding: Let pixels outside all regions see the subjects' words and the end, so that the latent feels a pull
            out of there; otherwise they see neither.
        end_tokens: Who sees the end token and the padding after it, which sum up the whole prompt: the regions
            ("subjects"), every pixel or none, start token aside.

    Returns:
        Boolean (B,h·w,T).
    """
    batch, length = len(regions), tokens.ids.shape[-1]
    inside = regions.flatten(2)
    background = ~inside.any(1)
    allowed = torch.ones(batch, inside.shape[-1], length, dtype=torch.bool, device=regions.device)
    allowed[..., [*tokens.filler, *(p for own in tokens.subjects for p in own)]] = False
    for index, own in enumerate(tokens.subjects):
        seen = inside[:, index] | background if guiding else inside[:, index]
        allowed[..., list(own)] |= seen[..., None]
    if end_tokens == "nowhere":
        allowed[..., tokens.end :] = False
    elif end_tokens == "subjects" and not guiding:
        allowed[..., tokens.end :] &= ~background[..., None]
    return allowed


def self_mask(regions: Tensor) -> Tensor:
    """Which pixels a pixel may see: those of its own regions and those outside all; outside, every one.

    Args:
        regions: Boolean (B,S,h,w).

    Returns:
        Boolean (B,h·w,h·w), symmetric.
    """
    inside = regions.flatten(2)
    background = ~inside.any(1)
    member = inside.float()
    together = torch.einsum("bsp,bsq->bpq", member, member) > 0
    return together | background[:, :, None] | background[:, None, :]


class BoundedAttention(AttentionRecorder):
    """Attention of a UNet within bounds, and a record of it where one is wanted.

    Without bounds it is the default attention, bit for bit. Masks are built once for each resolution and kept until
    the bounds change.

    Args:
        layers: Layers whose probabilities are recorded.
        end_tokens: As for `cross_mask`.
    """

    def __init__(self, layers: Sequence[LayerName] = (), end_tokens: EndTokens = "subjects") -> None:
        super().__init__(layers)
        self.end_tokens: EndTokens = end_tokens
        self._bounds: tuple[Regions, PromptTokens, bool, bool] | None = None
        self._masks: dict[tuple[str, int, int, bool, bool], Tensor] = {}
        self._device = torch.device("cpu")

    def bound(
        self,
        regions: Regions | None,
        tokens: PromptTokens | None = None,
        *,
        guiding: bool = False,
        guided: bool = False,
    ) -> None:
        """Set the bounds of the forwards to come.

        Args:
            regions: Of the pictures in the batch; None takes the bounds away.
            tokens: Of their prompt.
            guiding: As for `cross_mask`.
            guided: Whether the batch has an unconditional half before the conditional one; the words of that half
                are then seen from everywhere.
        """
        before = self._bounds
        self._bounds = None if regions is None or tokens is None else (regions, tokens, guiding, guided)
        if self._bounds is not None and (before is None or before[0] is not regions or before[1] is not tokens):
            self._masks.clear()

    def processed(self, unet: UNet2DConditionModel) -> Sequence[LayerName]:
        """Every layer."""
        self._device = unet.device
        return layers_of(unet)

    def allowed(self, layer: LayerName, size: tuple[int, int], keys: int) -> Tensor | None:
        """Which keys a query may see, or None for all."""
        if self._bounds is None:
            return None
        regions, tokens, guiding, guided = self._bounds
        key = (layer.kind, *size, guiding, guided)
        if key not in self._masks:
            inside = regions.at(*size).to(self._device)
            if layer.kind == "self":
                mask = self_mask(inside)
                self._masks[key] = mask.repeat(2, 1, 1) if guided and len(mask) > 1 else mask
            else:
                mask = cross_mask(inside, tokens, guiding=guiding, end_tokens=self.end_tokens)
                self._masks[key] = self._second_half(mask) if guided else mask
        return self._masks[key]

    def _second_half(self, mask: Tensor) -> Tensor:
        """Masks of the conditional rows, and none for as many before them."""
        mask = mask.expand(self.rows // 2, -1, -1)
        return torch.cat([torch.ones_like(mask), mask])
