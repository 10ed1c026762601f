"""Noise levels and preconditioning of Karras et al. 2022 (EDM) and Song et al. 2023 (consistency models).

A picture at noise level σ is ``x + σ z``, z ~ N(0, I), pictures in [-1,1]. The network F is never called bare:
``D(x, σ) = c_skip(σ) x + c_out(σ) F(c_in(σ) x, c_noise(σ))``.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lit_insert.errors import InputError


@dataclass(frozen=True)
class NoiseRange:
    """The noise levels that a model knows.

    Args:
        sigma_min: Smallest level ε, where a consistency function is the identity.
        sigma_max: Largest level T, from which sampling starts.
        rho: Exponent of the spacing; higher puts more levels near ε.
        sigma_data: Standard deviation of the pictures, in [-1,1].

    Raises:
        InputError: If 0 < sigma_min < sigma_max, rho > 0 or sigma_data > 0 does not hold.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise InputError(f"sigma_min {self.sigma_min}, sigma_max {self.sigma_max}: need 0 < sigma_min < sigma_max")
        if self.rho <= 0 or self.sigma_data <= 0:
            raise InputError(f"rho {self.rho} and sigma_data {self.sigma_data} must be above 0")

    def sigmas(self, count: int) -> Tensor:
        """``count`` rising levels, float64, the two ends exact (EDM eq. 5, read from the small end).

        σ_i = (ε^(1/ρ) + i/(N-1) (T^(1/ρ) - ε^(1/ρ)))^ρ for i = 0..N-1.

        Raises:
            ValueError: For fewer than 2.
        """
        if count < 2:
            raise ValueError(f"a discretisation has at least 2 levels, not {count}")
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        levels = (low + torch.linspace(0, 1, count, dtype=torch.float64) * (high - low)) ** self.rho
        levels[0], levels[-1] = self.sigma_min, self.sigma_max  # powers and roots do not cancel to the last bit
        return levels


class Scalings(NamedTuple):
    """``D = skip·x + out·F(c_in·x)``, each of the shape of σ."""

    skip: Tensor
    out: Tensor
    into: Tensor


def boundary_scalings(sigma: Tensor, sigma_min: float, sigma_data: float) -> Scalings:
    """Scalings with which ``f(x, sigma_min) = x`` to the bit (consistency models, appendix C).

    Args:
        sigma: Noise levels, float32 or float64.
        sigma_min: ε.
        sigma_data: Standard deviation of the pictures.
    """
    distance = sigma - torch.tensor(sigma_min, dtype=sigma.dtype, device=sigma.device)
    total = (sigma.square() + sigma_data**2).sqrt()
    skip = sigma_data**2 / (distance.square() + sigma_data**2)
    return Scalings(skip, sigma_data * distance / total, 1 / total)


def edm_scalings(sigma: Tensor, sigma_data: float) -> Scalings:
    """Scalings of a denoiser (EDM table 1): those of a consistency function with ε = 0."""
    return boundary_scalings(sigma, 0.0, sigma_data)


def noise_condition(sigma: Tensor) -> Tensor:
    """c_noise = 250 ln σ, the timestep that OpenAI's and diffusers' consistency models embed; float32."""
    precise = sigma if sigma.device.type == "mps" else sigma.double()
    return (250 * precise.log()).float()
