"""The losses that make a network consistent: distillation (CD) and training from data (CT, iCT, ECT).

All of them compare f at two levels of one probability-flow trajectory. They differ in how the lower point is found (a
step of a teacher, or the same noise at a lower level), which pairs of levels are drawn, and how a pair is weighted.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lit_insert.consistency.distances import Distance
from lit_insert.consistency.edm import Denoiser, expand, heun_step


def distilled_point(
    teacher: Denoiser, x_high: Tensor, sigma: Tensor, lower: Tensor, label: Tensor | None = None, *, order: int = 2
) -> Tensor:
    """CD's lower point: one ODE step of the teacher from σ to ``lower`` (Song et al. 2023, eq. 6), without gradient.

    Args:
        teacher: A diffusion model's denoiser.
        x_high: Pictures at σ, (B,C,H,W).
        sigma: Levels, (B,).
        lower: Levels to reach, (B,), above 0.
        label: Classes, (B,).
        order: 2 for Heun's solver, 1 for Euler's.
    """
    with torch.no_grad():
        return heun_step(teacher, x_high, sigma, lower, label, order=order)


def shared_noise_point(x: Tensor, noise: Tensor, lower: Tensor) -> Tensor:
    """CT's lower point: the same noise at the lower level, ``x + lower·z``, which needs no teacher."""
    return x + expand(lower, x) * noise


def consistency_loss(
    student: Denoiser,
    target: Denoiser,
    *,
    x_high: Tensor,
    sigma: Tensor,
    x_low: Tensor,
    lower: Tensor,
    distance: Distance,
    label: Tensor | None = None,
    clean: Tensor | None = None,
    floor: float = 0.0,
) -> Tensor:
    """d(f(x_high, σ), f⁻(x_low, lower)) of each sample; no gradient through f⁻, and both see the same dropout.

    Args:
        student: f, which learns.
        target: f⁻: an average of f, or f itself.
        x_high: Pictures at σ, (B,C,H,W).
        sigma: Upper levels, (B,).
        x_low: The other point of each pair, (B,C,H,W).
        lower: Lower levels, (B,).
        distance: d.
        label: Classes, (B,).
        clean: Pictures without noise; they are the target wherever ``lower`` is below ``floor``.
        floor: Level below which f is not defined.

    Returns:
        (B,).
    """
    repeat = same_randomness(x_high.device)
    made = student(x_high, sigma, label)
    with torch.no_grad():
        repeat()
        wanted = target(x_low, lower.clamp(min=floor) if floor else lower, label)
        if clean is not None:
            wanted = torch.where(expand(lower, x_low) < floor, clean, wanted)
    return distance(made, wanted)


def same_randomness(device: torch.device) -> Callable[[], None]:
    """Remember the state of the generators that dropout draws from; returns what puts them back to it."""
    cpu = torch.get_rng_state()
    if device.type == "cpu":
        return lambda: torch.set_rng_state(cpu)
    backend = torch.get_device_module(device)
    own = backend.get_rng_state(device)

    def restore() -> None:
        torch.set_rng_state(cpu)
        backend.set_rng_state(own, device)

    return restore
