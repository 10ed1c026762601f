"""What changes while a consistency model trains: number of levels, target decay, which levels are drawn.

Every schedule clamps the step to [0, total_steps]: a run that goes on too long never leaves the schedule's end.
"""

import math

import torch
from torch import Tensor


def _progress(step: int, total_steps: int) -> float:
    return min(max(step / total_steps, 0.0), 1.0)


def ct_levels(step: int, total_steps: int, s0: int = 2, s1: int = 150) -> int:
    """N(k) of consistency training (Song et al. 2023, appendix C): from s0 to s1 + 1 levels.

    N(k) = ceil(sqrt(k/K ((s1+1)² - s0²) + s0²) - 1) + 1.
    """
    square = _progress(step, total_steps) * ((s1 + 1) ** 2 - s0**2) + s0**2
    return math.ceil(round(math.sqrt(square), 9) - 1) + 1  # rounded: a root of 201² just above 201 is no further level


def ct_decay(levels: int, s0: int = 2, mu0: float = 0.95) -> float:
    """μ(k) = exp(s0 ln μ0 / N(k)), the target network's decay in consistency training; 0 for μ0 = 0."""
    return math.exp(s0 * math.log(mu0) / levels) if mu0 > 0 else 0.0


def ict_levels(step: int, total_steps: int, s0: int = 10, s1: int = 1280) -> int:
    """N(k) of improved consistency training (Song & Dhariwal 2023, eq. 11): doubling from s0 + 1 to s1 + 1.

    N(k) = min(s0 2^floor(k/K'), s1) + 1 with K' = floor(K / (log2 floor(s1/s0) + 1)).
    """
    period = max(1, math.floor(total_steps / (math.log2(s1 // s0) + 1)))
    doublings = min(int(_progress(step, total_steps) * total_steps) // period, 64)
    return min(s0 * 2**doublings, s1) + 1


def ict_probabilities(sigmas: Tensor, mean: float = -1.1, std: float = 2.0) -> Tensor:
    """Probability of drawing each pair (σ_i, σ_{i+1}) (iCT eq. 10): a log-normal over the discrete levels.

    Args:
        sigmas: Rising levels, (N,).
        mean: P_mean of ln σ.
        std: P_std of ln σ.

    Returns:
        (N-1,), summing to 1.
    """
    mass = torch.erf((sigmas.log() - mean) / (math.sqrt(2) * std)).diff()
    return mass / mass.sum()


def ect_stage(step: int, total_steps: int, stages: int) -> int:
    """Stage 0..stages-1 of easy consistency tuning: equal shares of the run."""
    return min(int(_progress(step, total_steps) * stages), stages - 1)


def ect_earlier(sigma: Tensor, stage: int, q: float = 2.0, k: float = 8.0, b: float = 1.0) -> Tensor:
    """The lower level r of a pair (Geng et al. 2024, eq. 14): r = max(0, t (1 - (1 + k sigmoid(-b t)) / q^(stage+1))).

    Early stages give r = 0, where the objective is that of a diffusion model; each later one brings r nearer to t.
    """
    return (sigma * (1 - (1 + k * torch.sigmoid(-b * sigma)) / q ** (stage + 1))).clamp(min=0)
