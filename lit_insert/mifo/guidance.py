"""Latent guidance: move the noisy latent so that each subject's attention gathers in its box, before the step."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import Literal, NamedTuple, get_args

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from lit_insert.errors import InputError
from lit_insert.mifo.attention import AttentionRecorder, LayerName, heads_of
from lit_insert.mifo.boxes import Box, rasterise
from lit_insert.mifo.prompts import PromptTokens

Objective = Literal["normalised", "mifo", "bounded_attention"]
_FLOAT16_SCALE = 2.0**7  # its smallest numbers would swallow the gradient


@dataclass
class GuidanceSettings:
    """How latents are guided.

    Args:
        objective: "normalised": attention as means over pixels, so that neither the size of a box nor that of the
            picture or the number of heads matters. "mifo": sums, and alpha as published (Su et al. 2025).
            "bounded_attention": sums, without the logarithm (Dahary et al. 2024).
        layers: Layers whose attention counts, by place and resolution; by default the middle and the layers on the way
            up whose resolution is nearest to 16.
        until: Fraction of the steps that are guided, from the first on.
        iterations: Gradient steps before a sampling step, at most.
        step_size: Factor of the gradient at the first guided step and, linearly from there, after the last.
        stop_below: No more iterations for a picture whose loss per subject is below this.
        cross_weight: Weight of the cross-attention's terms.
        self_weight: Weight of the self-attention's terms.
        backtrack: Take a step back, and half of it instead, where the loss rose.
    """

    objective: Objective = "normalised"
    layers: list[str] | None = None
    until: float = 0.3
    iterations: int = 5
    step_size: tuple[float, float] = (8.0, 2.0)
    stop_below: float = 0.2
    cross_weight: float = 1.5
    self_weight: float = 0.5
    backtrack: bool = False

    def __post_init__(self) -> None:
        self.step_size = (float(self.step_size[0]), float(self.step_size[1]))
        if self.objective not in get_args(Objective):
            raise InputError(f"guidance.objective is {self.objective!r}; use one of {', '.join(get_args(Objective))}")
        if not 0 <= self.until <= 1 or self.iterations < 1:
            raise InputError("guidance: until is a fraction of the steps, and iterations at least 1")

    def steps(self, steps: int) -> int:
        """How many of the sampling steps are guided."""
        return round(self.until * steps)

    def step_size_at(self, step: int, steps: int) -> float:
        """η at a guided step: linear from the first value towards the second."""
        first, last = self.step_size
        return first + (last - first) * step / max(1, self.steps(steps))


def alpha(step: int, *, clamped: bool = True, high: float = 0.4, middle: float = 0.1, low: float = 0.01) -> float:
    """Weight of the logarithm: from ``high`` linearly to ``middle`` at step 3, then by a cosine to ``low`` at step 15.

    Args:
        step: From 0.
        clamped: Never above ``high``; as published the line starts a step early and above it.
        high: At step 1.
        middle: At step 3.
        low: From step 15 on.
    """
    if step < 3:
        value = high + (middle - high) * (step - 1) / 2
        return min(value, high) if clamped else value
    if step < 15:
        return low + (middle - low) * (1 + cos(pi * (step - 3) / 12)) / 2
    return low


class Term(NamedTuple):
    """Attention inside and outside, each (B,S)."""

    inside: Tensor
    outside: Tensor


def attention_terms(
    maps: Sequence[Tensor], inside: Sequence[Tensor], outside: Sequence[Tensor], scales: Sequence[float]
) -> Term:
    """Attention to each subject from inside and from outside its box, averaged over layers.

    Args:
        maps: One a layer, (B,S,h,w): what a pixel gives to the subject's tokens or pixels.
        inside: One a layer, float (S,h,w), 1 in the subject's box.
        outside: One a layer, float (S,h,w), 1 where attention to the subject is not wanted.
        scales: One a layer. 0 averages over pixels; above, sums over pixels are multiplied by it.
    """
    found: list[list[Tensor]] = [[], []]
    for own, within, beyond, scale in zip(maps, inside, outside, scales, strict=True):
        for into, weight in zip(found, (within, beyond), strict=True):
            total = (own * weight).sum((-2, -1))
            into.append(total * scale if scale else total / weight.sum((-2, -1)).clamp(min=1))
    return Term(*(torch.stack(part).mean(0) for part in found))


def guidance_loss(cross: Term, own: Term, weight: float, settings: GuidanceSettings) -> Tensor:
    """Loss (B,): Σ_subjects of the weighted cross and self terms (1 - f/(f+b))² + α ln(1+b).

    Args:
        cross: Attention to a subject's words.
        own: Attention to the pixels in its box.
        weight: α.
        settings: Objective and weights.
    """
    total = torch.zeros_like(cross.inside[:, 0])
    for (f, b), factor in ((cross, settings.cross_weight), (own, settings.self_weight)):
        crowd = f.shape[1] if settings.objective == "bounded_attention" else 1
        loss = (1 - f / (f + crowd * b).clamp(min=1e-12)).square()
        if settings.objective != "bounded_attention":
            loss = loss + weight * torch.log1p(b)
        total = total + factor * loss.sum(1)
    return total


class LatentGuidance:
    """Gradient steps on latents before a sampling step (Su et al. 2025; Dahary et al. 2024).

    The published code runs both halves of classifier-free guidance through the UNet here; only the conditional one
    has the subjects, so only that one is run.

    Args:
        unet: Its weights need no gradient.
        recorder: Attached to it, and records the layers below.
        layers: Cross- and self-attention layers whose attention counts.
        tokens: Positions in the prompt.
        boxes: One a subject.
        settings: How.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        recorder: AttentionRecorder,
        layers: Sequence[LayerName],
        tokens: PromptTokens,
        boxes: Sequence[Box],
        settings: GuidanceSettings,
    ) -> None:
        self.unet, self.recorder, self.layers, self.tokens = unet, recorder, tuple(layers), tokens
        self.boxes, self.settings = tuple(boxes), settings
        plain = settings.objective == "normalised"
        self._inside: dict[tuple[int, int], Tensor] = {}
        self.scales = {layer: 0.0 if plain else float(heads_of(unet, layer)) for layer in layers}

    def loss(self, latents: Tensor, timestep: Tensor, states: Tensor, step: int) -> Tensor:
        """The loss (B,) of latents, float32, with its gradient.

        Args:
            latents: What the UNet would be given, (B,C,h,w).
            timestep: Scalar.
            states: The prompt's states (B,T,X).
            step: Number of the sampling step, for α.
        """
        dtype = self.unet.dtype
        self.unet(latents.to(dtype), timestep, states.to(dtype), return_dict=False)
        terms = [self._terms(kind) for kind in ("cross", "self")]
        weight = alpha(step, clamped=self.settings.objective == "normalised")
        return guidance_loss(terms[0], terms[1], weight, self.settings)

    def improve(
        self, latents: Tensor, timestep: Tensor, states: Tensor, step: int, steps: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Latents with a lower loss.

        Pictures do not influence each other: each stops for itself.

        Args:
            latents: (B,C,h,w), float32.
            timestep: Scalar.
            states: The prompt's states (B,T,X).
            step: Number of the sampling step.
            steps: How many there are.

        Returns:
            The latents, and the losses (B,) before each iteration.

        Raises:
            InputError: If the gradient is not finite.
        """
        settings = self.settings
        rate = latents.new_full((len(latents), 1, 1, 1), settings.step_size_at(step, steps))
        goal = settings.stop_below * len(self.boxes)
        losses: list[Tensor] = []
        kept = latents
        slope, best = torch.zeros_like(latents), torch.full_like(rate, float("inf"))
        for _ in range(settings.iterations):
            loss, gradient = self._slope(latents, timestep, states, step)
            losses.append(loss)
            loss = loss.view_as(rate)
            if settings.backtrack:
                worse = loss > best
                rate = torch.where(worse, rate / 2, rate)
                kept, slope = torch.where(worse, kept, latents), torch.where(worse, slope, gradient)
                best = torch.where(worse, best, loss)
            else:
                kept, slope, best = latents, gradient, loss
            active = best >= goal
            if not active.any():
                return kept, losses
            latents = torch.where(active, kept - rate * slope, kept)
        if settings.backtrack:
            with torch.no_grad():
                losses.append(self.loss(latents, timestep, states, step))
            latents = torch.where(losses[-1].view_as(rate) > best, kept, latents)
        return latents, losses

    def _slope(self, latents: Tensor, timestep: Tensor, states: Tensor, step: int) -> tuple[Tensor, Tensor]:
        scale = _FLOAT16_SCALE if self.unet.dtype == torch.float16 else 1.0
        with torch.enable_grad():
            leaf = latents.detach().requires_grad_(True)
            loss = self.loss(leaf, timestep, states, step)
            (gradient,) = torch.autograd.grad(loss.sum() * scale, leaf)
        if not gradient.isfinite().all():
            raise InputError(f"the guidance overflowed in {self.unet.dtype}; use float32 or bfloat16")
        return loss.detach(), gradient / scale

    def _terms(self, kind: str) -> Term:
        plain = self.settings.objective == "normalised"
        maps, inside, outside, scales = [], [], [], []
        for layer in self.layers:
            if layer.kind != kind:
                continue
            size = self.recorder.sizes[layer]
            probabilities = self.recorder.maps[layer].float()
            if size not in self._inside:
                self._inside[size] = rasterise(self.boxes, *size).to(probabilities)
            boxes = self._inside[size]
            if kind == "cross":
                # As published with the end token; but that one belongs to all subjects, and one's inside is
                # another's outside in the means.
                shared = [] if plain else [self.tokens.end]
                contexts = [[*own, *shared] for own in self.tokens.subjects]
                given = torch.stack([probabilities[..., own].sum(-1) for own in contexts], dim=1)
            else:
                given = torch.einsum("bpq,sq->bsp", probabilities, boxes.flatten(1))
            maps.append(given.unflatten(-1, size))
            inside.append(boxes)
            # As published: outside every box. Means over all that is not one's own also hold without masks.
            anywhere = (
                boxes if self.settings.objective == "normalised" else boxes.amax(0, keepdim=True).expand_as(boxes)
            )
            outside.append(1 - anywhere)
            scales.append(self.scales[layer])
        return attention_terms(maps, inside, outside, scales)
