"""Multistep sampling of a consistency model, as a pure function."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lit_insert.consistency.edm import Denoiser
from lit_insert.consistency.karras import NoiseRange
from lit_insert.errors import InputError

GRID = 40  # levels of the grid on which numbers of steps are laid out, diffusers' num_train_timesteps


@torch.no_grad()
def multistep(
    f: Denoiser,
    noise: Tensor,
    sigmas: Sequence[float],
    *,
    sigma_min: float = 0.002,
    label: Tensor | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    clip: bool = True,
) -> Tensor:
    """Pictures from noise (Song et al. 2023, algorithm 1).

    x₀ = f(x, σ₁) with x = σ₁ z; then for each further level x₀ = f(x₀ + sqrt(σ_k² - ε²) z_k, σ_k).

    Args:
        f: The consistency function.
        noise: Standard normal, (B,C,H,W).
        sigmas: Falling levels; their number is the number of evaluations.
        sigma_min: ε.
        label: Classes, (B,).
        generator: Of the noise between two evaluations; one for all, or one a sample.
        clip: Bring every x₀ to [-1,1].
    """
    x = noise * sigmas[0]
    for i, sigma in enumerate(sigmas):
        if i:
            fresh = standard_normal(x.shape, generator, x.device, x.dtype)
            x = x + max(sigma**2 - sigma_min**2, 0.0) ** 0.5 * fresh
        x = f(x, torch.full((len(x),), sigma, dtype=torch.float32, device=x.device), label)
        x = x.clamp(-1, 1) if clip else x
    return x


def standard_normal(
    shape: Sequence[int],
    generator: torch.Generator | list[torch.Generator] | None,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers, drawn where the generator is; with a list, sample i by the i-th alone."""
    if isinstance(generator, list):
        return torch.cat([standard_normal((1, *shape[1:]), g, device, dtype) for g in generator])
    where = generator.device if generator is not None else device
    return torch.randn(tuple(shape), generator=generator, device=where, dtype=dtype).to(device)


def guided(denoiser: Denoiser, scale: float, null_label: int) -> Denoiser:
    """Classifier-free guidance: D_∅ + scale (D_label - D_∅); the denoiser itself for scale 1."""
    if scale == 1:
        return denoiser

    def both(x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        if label is None:
            raise ValueError("guidance needs labels")
        labels = torch.cat([label, torch.full_like(label, null_label)])
        conditional, free = denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), labels).chunk(2)
        return free + scale * (conditional - free)

    return both


def check_sigmas(sigmas: Sequence[float], levels: NoiseRange) -> list[float]:
    """Noise levels that a user gave.

    Raises:
        InputError: If there is none, they do not fall, or one is not in (sigma_min, sigma_max].
    """
    given = [float(s) for s in sigmas]
    if not given:
        raise InputError("sigmas is empty; give at least one noise level")
    low, high = levels.sigma_min, levels.sigma_max
    wrong = [s for s in given if not low < s <= high]
    if wrong:
        raise InputError(f"sigmas: {wrong[0]:g} is not a level of this model; give more than {low:g}, at most {high:g}")
    if any(b >= a for a, b in pairwise(given)):
        raise InputError(f"sigmas must fall, but are {', '.join(f'{s:g}' for s in given)}")
    return given


def sigmas_for(steps: int, levels: NoiseRange, grid: int = GRID) -> list[float]:
    """Levels for a number of steps, by the rule of diffusers' CMStochasticIterativeScheduler.

    Raises:
        InputError: If ``steps`` is not in 1..``grid``.
    """
    if not 1 <= steps <= grid:
        raise InputError(f"num_inference_steps is {steps}; give 1 to {grid}")
    return sigmas_at([grid // steps * i for i in range(steps)], levels, grid)


def sigmas_at(indices: Sequence[int], levels: NoiseRange, grid: int = GRID) -> list[float]:
    """Levels at rising indices of a grid that begins with the largest level (OpenAI's ``ts``).

    Raises:
        InputError: If an index is outside the grid, or they do not rise.
    """
    if not indices or any(not 0 <= i < grid for i in indices):
        raise InputError(f"indices must be in 0..{grid - 1} for a grid of {grid} levels, but are {list(indices)}")
    if any(b <= a for a, b in pairwise(indices)):
        raise InputError(f"indices must rise from the largest noise level on, but are {list(indices)}")
    falling = levels.sigmas(grid).flip(0)
    return [float(falling[i]) for i in indices]


def sigmas_below(
    begin: float | None, steps: int, levels: NoiseRange, grid: int = GRID, *, at_most: bool = False
) -> list[float]:
    """Levels of an edit: so many of the grid, evenly spaced from the one nearest to ``begin`` down to the clean end.

    A distilled model has learnt f on its grid alone, so an edit keeps to it.

    Args:
        begin: Where to start; None for the largest level.
        steps: How many; the clean end is not one of them.
        levels: The model's range.
        grid: Number of levels.
        at_most: Where the grid has fewer levels from there down, take those.

    Raises:
        InputError: If ``steps`` is below 1, or the grid has fewer levels from there down.
    """
    rising = levels.sigmas(grid)
    first = grid - 1
    if begin is not None:
        place = rising ** (1 / levels.rho) - begin ** (1 / levels.rho)
        first = max(1, int(place.abs().argmin()))
    steps = min(steps, first) if at_most else steps
    if not 1 <= steps <= first:
        start = f"{float(rising[first]):g}"
        raise InputError(f"num_inference_steps is {steps}; give 1 to {first} from noise level {start} down")
    return [float(rising[math.floor(first * (steps - i) / steps + 0.5)]) for i in range(steps)]
