"""The diffusion teacher of Karras et al. 2022: loss and Heun sampler."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # x (B,C,H,W), sigma (B,), label (B,) | None -> x0


def lognormal(normal: Tensor, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """Noise levels with ln σ ~ N(mean, std²), from standard normal numbers (B,)."""
    return (mean + std * normal).exp()


def edm_loss(
    denoiser: Denoiser, x: Tensor, noise: Tensor, sigma: Tensor, label: Tensor | None = None, *, sigma_data: float = 0.5
) -> Tensor:
    """(σ² + σ_data²)/(σ σ_data)² times the mean squared error of the denoised picture (EDM eq. 2 and table 1).

    Args:
        denoiser: D.
        x: Pictures in [-1,1], (B,C,H,W).
        noise: Standard normal, of the same shape.
        sigma: Noise levels, (B,).
        label: Classes, (B,) int64.
        sigma_data: Standard deviation of the pictures.

    Returns:
        One number a sample, (B,).
    """
    denoised = denoiser(x + expand(sigma, x) * noise, sigma, label)
    weight = (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()
    return weight * (denoised - x).square().flatten(1).mean(1)


def heun_step(
    denoiser: Denoiser, x: Tensor, sigma: Tensor, lower: Tensor, label: Tensor | None = None, *, order: int = 2
) -> Tensor:
    """One step of the probability-flow ODE dx/dσ = (x - D(x,σ))/σ from σ down to ``lower``.

    Args:
        denoiser: D.
        x: Pictures at σ, (B,C,H,W).
        sigma: Levels, (B,).
        lower: Levels to reach, (B,), above 0 for order 2.
        label: Classes, (B,).
        order: 2 for Heun, 1 for Euler.
    """
    high, low = expand(sigma, x), expand(lower, x)
    slope = (x - denoiser(x, sigma, label)) / high
    euler = x + (low - high) * slope
    if order == 1:
        return euler
    second = (euler - denoiser(euler, lower, label)) / low
    return x + (low - high) * (slope + second) / 2


@torch.no_grad()
def heun_sample(
    denoiser: Denoiser, noise: Tensor, sigmas: Tensor | Sequence[float], label: Tensor | None = None, *, order: int = 2
) -> Tensor:
    """Pictures from noise by the deterministic sampler (EDM algorithm 1 without churn).

    Args:
        denoiser: D.
        noise: Standard normal, (B,C,H,W).
        sigmas: Levels above 0, rising or falling; a last step, to 0, is Euler's.
        label: Classes, (B,).
        order: 2 for Heun (2N - 1 evaluations), 1 for Euler (N).
    """
    levels = [*sorted((float(s) for s in sigmas), reverse=True), 0.0]
    x = noise * levels[0]
    for high, low in pairwise(levels):
        high_rows, low_rows = x.new_full((len(x),), high), x.new_full((len(x),), low)
        x = heun_step(denoiser, x, high_rows, low_rows, label, order=order if low else 1)
    return x


def expand(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B,1,1,1), of the dtype of pictures."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
