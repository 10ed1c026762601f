"""The losses that make a network consistent: distillation (CD) and training from data (CT, iCT, ECT).

All of them compare f at two levels of one probability-flow trajectory. They differ in how the lower point is found (a
step of a teacher, or the same noise at a lower level), which pairs of levels are drawn, and how a pair is weighted.
"""

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
    every_row: bool = False,
    fewest_rows: int = 1,
) -> Tensor:
    """d(f(x_high, σ), f⁻(x_low, lower)) of each sample; no gradient through f⁻, and both see the same dropout.

    f⁻ is known without its network at ``floor``, where it is the identity, and below, where ``clean`` is its value. So
    the network sees the other rows only; all of them, though, if it draws dropout, since fewer rows would drop other
    units.

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
        floor: σ_min, where f is the identity and below which it is not defined; 0 for functions without one.
        every_row: Let the network see all rows always, where every rank must run it.
        fewest_rows: Let it see at least so many, if any. torch.compile follows a changing number of rows with one
            graph, but compiles another for a single row; 2 spares that.

    Returns:
        (B,).
    """
    randomness = Randomness(x_high.device)
    made = student(x_high, sigma, label)
    with torch.no_grad():
        unknown = lower > floor
        wanted = x_low if clean is None else torch.where((lower < floor)[:, None, None, None], clean, x_low)
        count, at_floor = int(unknown.sum()), lower.clamp(min=floor)
        if every_row or (count and randomness.drawn()):
            randomness.restore()
            seen = target(x_low, at_floor, label)
        elif count:
            rows = unknown.argsort(descending=True, stable=True)[: max(count, fewest_rows)]
            part = target(x_low[rows], at_floor[rows], label if label is None else label[rows])
            seen = wanted.index_copy(0, rows, part)
        else:
            seen = wanted
        wanted = torch.where(unknown[:, None, None, None], seen, wanted)
    return distance(made, wanted)


class Randomness:
    """The state of the generators that dropout draws from, as it is now.

    Args:
        device: Where the network runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._backend = None if device.type == "cpu" else torch.get_device_module(device)
        self._states = self._now()

    def drawn(self) -> bool:
        """Whether anything was drawn since."""
        return not all(torch.equal(a, b) for a, b in zip(self._states, self._now(), strict=True))

    def restore(self) -> None:
        """Put the generators back, so that the same numbers are drawn again."""
        torch.set_rng_state(self._states[0])
        if self._backend is not None:
            self._backend.set_rng_state(self._states[1], self._device)

    def _now(self) -> list[Tensor]:
        own = [] if self._backend is None else [self._backend.get_rng_state(self._device)]
        return [torch.get_rng_state(), *own]
