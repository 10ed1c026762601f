"""Flow matching on feature maps: the straight path, its times, its loss, and guidance."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_insert.errors import InputError

# (x_t (N,C,H,W), times (N,), classes (N,) | None) -> velocity (N,C,H,W)
Velocity = Callable[[Tensor, Tensor, Tensor | None], Tensor]
BASE_DIMENSION = 4096
Times = TypeVar("Times", float, Tensor)


def shift_of(shape: Sequence[int]) -> float:
    """Shift a = √(C·H·W / 4096): in larger latents times move towards noise (Esser et al. 2024, Zheng et al. 2025).

    Args:
        shape: (C, H, W).
    """
    size = 1
    for length in shape:
        size *= int(length)
    return float((size / BASE_DIMENSION) ** 0.5)


def shift_time(time: Times, alpha: float) -> Times:
    """Shifted time t = a·u / (1 + (a-1)·u); 0 and 1 stay."""
    return alpha * time / (1 + (alpha - 1) * time)


def unshift_time(time: Times, alpha: float) -> Times:
    """The inverse, u = t / (a - (a-1)·t)."""
    return time / (alpha - (alpha - 1) * time)


def logit_normal(normal: Tensor, alpha: float = 1.0) -> Tensor:
    """Times to train at: the logistic function of standard normal numbers (B,), shifted."""
    return shift_time(normal.sigmoid(), alpha)


def along(time: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B,1,…,1)."""
    return time.reshape(-1, *[1] * (like.ndim - 1)).to(like)


def interpolate(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """x_t = (1-t)·z + t·e; clean and noise (B,…), times (B,)."""
    t = along(time, clean)
    return (1 - t) * clean + t * noise


def flow_loss(velocity: Velocity, clean: Tensor, noise: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
    """Squared error of the velocity e - z at x_t, a mean for each sample, float32 (B,).

    Args:
        velocity: The network.
        clean: Normalised features z, (B,C,H,W).
        noise: Standard normal e, the same shape.
        time: (B,) in [0,1].
        label: Classes (B,), or None.
    """
    clean, noise = clean.float(), noise.float()
    predicted = velocity(interpolate(clean, noise, time), time, label)
    return F.mse_loss(predicted.float(), noise - clean, reduction="none").flatten(1).mean(1)


def guided(
    strong: Velocity,
    weak: Velocity,
    scale: float,
    label: Callable[[Tensor], Tensor | None] | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Velocity:
    """Guidance: v_weak + w (v_strong - v_weak) at times within an interval, v_strong at others.

    With the same network under the null class as the weak one this is classifier-free guidance (Ho & Salimans 2022);
    with a smaller or less trained network, autoguidance (Karras et al. 2024).

    Args:
        strong: The network.
        weak: The other.
        scale: w; 1 is no guidance.
        label: What the weak network is told instead of the classes (B,); None tells it the same.
        interval: Times, both ends included, at which to guide.

    Raises:
        InputError: If the interval is empty or outside [0,1].
    """
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise InputError(f"guidance interval is {low:g} to {high:g}; give two rising numbers in [0, 1]")
    if scale == 1:
        return strong

    def call(x: Tensor, time: Tensor, classes: Tensor | None) -> Tensor:
        velocity = strong(x, time, classes)
        inside = (time >= low) & (time <= high)
        if not bool(inside.any()):
            return velocity
        told = classes if label is None or classes is None else label(classes)
        base = weak(x, time, told)
        return torch.where(along(inside, velocity).bool(), base + scale * (velocity - base), velocity)

    return call
