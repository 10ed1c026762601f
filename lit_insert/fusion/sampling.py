"""From a noise level back to clean features, with everything outside a mask held on its own path."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from lit_insert.diffusion.noise import step_generator
from lit_insert.errors import InputError
from lit_insert.fusion.objective import Velocity, interpolate, shift_time, unshift_time


def noise_levels(strength: float, num_inference_steps: int, alpha: float = 1.0) -> list[float]:
    """Noise levels of a run from ``strength`` to 0, falling; 0 itself is left out.

    The levels are even in the time before the shift, in which the network was trained, not in t.

    Args:
        strength: First noise level t in (0,1].
        num_inference_steps: Steps of a run from pure noise; one from t takes max(1, int(steps·t)).
        alpha: The shift a, see `lit_insert.fusion.objective.shift_of`.

    Raises:
        InputError: If a number is out of range.
    """
    if not 0 < strength <= 1:
        raise InputError(f"strength is {strength:g}; give more than 0 and at most 1")
    if num_inference_steps < 1:
        raise InputError(f"num_inference_steps is {num_inference_steps}; give 1 or more")
    count = max(1, int(num_inference_steps * strength))
    first = unshift_time(float(strength), alpha)
    levels = [shift_time(first * (1 - i / count), alpha) for i in range(count)]
    return [float(strength), *levels[1:]]


def job_noise(seed: int, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """The noise (1,C,H,W) of one job: from its seed alone, drawn on the CPU, so that nothing else changes it."""
    generator = step_generator(seed, 0, 0)
    return torch.randn(1, *shape, generator=generator).to(device)


def refine(
    velocity: Velocity,
    fused: Tensor,
    noise: Tensor,
    levels: Sequence[float],
    *,
    base: Tensor | None = None,
    mask: Tensor | None = None,
    label: Tensor | None = None,
    callback: Callable[[int], None] | None = None,
) -> Tensor:
    """Noise features to the first level and integrate the flow back (SDEdit, Meng et al. 2022), Euler's method.

    Outside the mask, every step is followed by z <- (1-t)·z_base + t·e with the e of the start, so that the rest of
    the scene is at each time what the network would see of it, and ends as ``base`` to the bit.

    Args:
        velocity: v(x, t, class) = e - z.
        fused: Where to start, (N,C,H,W), normalised.
        noise: e, the same shape.
        levels: Noise levels, falling, without the final 0.
        base: The scene's own features; needed with a mask.
        mask: (N,1,H,W), above 0 where features may change. None: everywhere.
        label: Classes (N,), or None.
        callback: Called with the number of each finished step, from 1.

    Returns:
        Float32 (N,C,H,W).

    Raises:
        InputError: If the levels do not fall, or there is a mask without a base.
    """
    if not levels or any(b >= a for a, b in pairwise(levels)) or not 0 < levels[-1] <= levels[0] <= 1:
        raise InputError(f"noise levels {list(levels)} must fall within (0, 1]")
    if mask is not None and base is None:
        raise InputError("a mask needs the scene's own features to hold the rest to")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    # Always explicit: the default grid is shifted twice.
    scheduler.set_timesteps(sigmas=list(levels), device=fused.device)
    fused, noise = fused.float(), noise.float()
    rows = len(fused)
    z = interpolate(fused, noise, scheduler.sigmas[0].expand(rows))
    if mask is not None and base is not None:
        mask, base = mask > 0, base.float()
        z = torch.where(mask, z, interpolate(base, noise, scheduler.sigmas[0].expand(rows)))
    for number, step in enumerate(scheduler.timesteps):
        time, after = scheduler.sigmas[number], scheduler.sigmas[number + 1]
        z = scheduler.step(velocity(z, time.expand(rows), label).float(), step, z).prev_sample
        if mask is not None and base is not None:
            z = torch.where(mask, z, interpolate(base, noise, after.expand(rows)))
        if callback is not None:
            callback(number + 1)
    return z
