"""DDIM under bounded attention and latent guidance: the loop, and what happens around each of its steps."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from lit_insert.mifo.attention import Kind, LayerName, layers_of, select_layers
from lit_insert.mifo.bounded import BoundedAttention, EndTokens, Regions
from lit_insert.mifo.boxes import Box
from lit_insert.mifo.guidance import GuidanceSettings, LatentGuidance
from lit_insert.mifo.prompts import PromptTokens
from lit_insert.mifo.regions import RefinementSettings, RegionTracker

_USUAL = 16


def default_spots(unet: UNet2DConditionModel, use: Literal["guidance", "refinement"]) -> list[str]:
    """Where a UNet's attention tells things apart: on the way up, at the resolution nearest to 16 by ratio."""
    sides = {layer.resolution for layer in layers_of(unet, "cross") if layer.place == "up"}
    nearest = min(sides, key=lambda side: (max(side / _USUAL, _USUAL / side), side))
    up = f"up:{nearest}"
    middle = [layer for layer in layers_of(unet, "cross") if layer.place == "mid"]
    return ["mid", up] if use == "guidance" and middle else [up]


def both_kinds(unet: UNet2DConditionModel, spots: Sequence[str]) -> list[LayerName]:
    """Cross- and self-attention layers at some spots."""
    kinds: tuple[Kind, Kind] = ("cross", "self")
    return [layer for kind in kinds for layer in select_layers(unet, spots, kind)]


class Control:
    """What box control does to the sampling of one batch.

    Args:
        unet: The UNet.
        tokens: Positions in the prompt.
        boxes: One a subject.
        masks: Keep attention within bounds while sampling.
        guidance: How latents are guided, or None.
        refinement: How regions are refined, or None; of no use without masks.
        end_tokens: Who sees the end token.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        tokens: PromptTokens,
        boxes: Sequence[Box],
        *,
        masks: bool = True,
        guidance: GuidanceSettings | None = None,
        refinement: RefinementSettings | None = None,
        end_tokens: EndTokens = "subjects",
    ) -> None:
        self.tokens, self.masks, self.boxes = tokens, masks, tuple(boxes)
        self.attention = BoundedAttention(end_tokens=end_tokens)
        self.regions = Regions(boxes)
        self.guidance: LatentGuidance | None = None
        self.tracker: RegionTracker | None = None
        self.losses: list[Tensor] = []
        if guidance is not None:
            layers = both_kinds(unet, guidance.layers or default_spots(unet, "guidance"))
            self.guidance = LatentGuidance(unet, self.attention, layers, tokens, boxes, guidance)
        if refinement is not None and masks:
            layers = both_kinds(unet, refinement.layers or default_spots(unet, "refinement"))
            self.tracker = RegionTracker(layers, tokens.subjects, boxes, refinement)

    def before(self, latents: Tensor, timestep: Tensor, states: Tensor, step: int, steps: int) -> Tensor:
        """Refine the regions and guide the latents (B,C,h,w), if it is time for either."""
        if self.tracker is not None and self.tracker.settings.due(step, steps):
            self.regions = Regions(self.boxes, self.tracker.refine())
        if self.guidance is None or step >= self.guidance.settings.steps(steps):
            return latents
        self.attention.layers = self.guidance.layers
        self.attention.bound(self.regions if self.masks else None, self.tokens, guiding=True)
        latents, losses = self.guidance.improve(latents, timestep, states, step, steps)
        self.losses.append(torch.stack([losses[0], losses[-1]]).cpu())
        return latents

    def during(self, guided: bool) -> None:
        """Get ready for the forward of a sampling step; ``guided`` if it has an unconditional half."""
        self.attention.layers = self.tracker.layers if self.tracker else ()
        self.attention.bound(self.regions if self.masks else None, self.tokens, guided=guided)

    def after(self, count: int) -> None:
        """Learn from that forward, whose last ``count`` rows are conditional."""
        if self.tracker is not None:
            self.tracker.add(self.attention, slice(-count, None))
        self.attention.clear()


def split_prediction(
    scheduler: DDIMScheduler, predicted: Tensor, timestep: Tensor, latents: Tensor
) -> tuple[Tensor, Tensor]:
    """Clean latents and noise that a prediction (ε, v or the clean latents) stands for."""
    level = scheduler.alphas_cumprod[int(timestep)].to(latents)
    signal, noise = level.sqrt(), (1 - level).sqrt()
    kind = scheduler.config["prediction_type"]
    if kind == "v_prediction":
        return signal * latents - noise * predicted, signal * predicted + noise * latents
    if kind == "sample":
        return predicted, (latents - signal * predicted) / noise
    return (latents - noise * predicted) / signal, predicted


def plus_plus_step(scheduler: DDIMScheduler, plain: Tensor, mixed: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
    """A step of DDIM with CFG++ (Chung et al. 2025): clean latents by the mixed noise, noised anew by the plain one.

    Args:
        scheduler: With its timesteps set.
        plain: Prediction without the prompt.
        mixed: plain + scale · (prompted - plain), scale from 0 to 1.
        timestep: Scalar.
        latents: (B,C,h,w).
    """
    clean, _ = split_prediction(scheduler, mixed, timestep, latents)
    _, noise = split_prediction(scheduler, plain, timestep, latents)
    later = scheduler.timesteps[scheduler.timesteps < timestep]
    level = scheduler.alphas_cumprod[int(later[0])] if len(later) else scheduler.final_alpha_cumprod
    level = level.to(latents)
    return level.sqrt() * clean + (1 - level).sqrt() * noise


@torch.no_grad()
def denoise(
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    latents: Tensor,
    states: Tensor,
    *,
    guidance_scale: float,
    plus_plus: bool = False,
    control: Control | None = None,
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    """Latents (B,C,h,w), float32, from noise.

    Args:
        unet: Its weights need no gradient.
        scheduler: With its timesteps set.
        latents: Standard normal noise (B,C,h,w), float32.
        states: Of the empty (or negative) prompt and of the prompt, (2,T,X).
        guidance_scale: 1 is no guidance by the prompt, and half the time; with CFG++ from 0 to 1.
        plus_plus: CFG++ in place of classifier-free guidance.
        control: Box control, attached to the UNet.
        on_step: Called after each step.
    """
    count, steps = len(latents), len(scheduler.timesteps)
    guided = plus_plus or guidance_scale != 1
    prompted = states[1:].expand(count, -1, -1)
    context = torch.cat([states[:1].expand(count, -1, -1), prompted]) if guided else prompted
    context = context.to(unet.dtype)
    for step, timestep in enumerate(scheduler.timesteps):
        if control is not None:
            latents = control.before(latents, timestep, prompted, step, steps)
            control.during(guided)
        rows = latents.repeat(2, 1, 1, 1) if guided else latents
        predicted = unet(rows.to(unet.dtype), timestep, context, return_dict=False)[0].float()
        if control is not None:
            control.after(count)
        if guided:
            plain, full = predicted.chunk(2)
            predicted = plain + guidance_scale * (full - plain)
        if plus_plus:
            latents = plus_plus_step(scheduler, plain, predicted, timestep, latents)
        else:
            latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
        if on_step is not None:
            on_step()
    return latents
