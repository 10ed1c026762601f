"""Which two noise levels a consistency objective compares, and how it weights them, as a run proceeds."""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from lit_insert.consistency import schedules
from lit_insert.consistency.karras import NoiseRange
from lit_insert.errors import InputError

Objective = Literal["cd", "ct", "ict", "ect"]
DEFAULTS: dict[str, dict[str, Any]] = {
    "cd": {"s0": 18, "s1": 18, "mu0": 0.95},
    "ct": {"s0": 2, "s1": 150, "mu0": 0.9},
    "ict": {"s0": 10, "s1": 1280, "mu0": 0.0, "mean": -1.1, "std": 2.0},
    "ect": {"s0": 0, "s1": 0, "mu0": 0.0, "mean": -1.1, "std": 2.0},
}


class Pairs(NamedTuple):
    """Upper and lower noise levels and the weight of each sample, float32 (B,); ``lower`` may be 0 in ECT."""

    sigma: Tensor
    lower: Tensor
    weight: Tensor


@dataclass(frozen=True)
class PairSchedule:
    """The schedule of an objective; what is null takes the published value of that objective.

    Args:
        total_steps: K, optimiser steps of the run; the schedule ends there and stays.
        s0: CD: number of levels N. CT, iCT: first number of intervals (2; 10).
        s1: CT, iCT: last number of intervals (150; 1280).
        mu0: Decay of the target network: CD's fixed μ (0.95), CT's first one (0.9); 0 for no target network.
        mean: Mean of ln σ of the pairs drawn by iCT and ECT (-1.1).
        std: Standard deviation of the same (2).
        stages: ECT: number of stages, equally long.
        q: ECT: how much nearer the two levels come with each stage.
        k: ECT: steepness of the mapping from t to r.
        b: ECT: the same at large t.
    """

    total_steps: int = 100_000
    s0: int | None = None
    s1: int | None = None
    mu0: float | None = None
    mean: float | None = None
    std: float | None = None
    stages: int = 8
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0

    def filled(self, objective: str) -> Self:
        """The same with the objective's own values in the place of null.

        Raises:
            InputError: If the objective is unknown or a value is out of its range.
        """
        if objective not in DEFAULTS:
            raise InputError(f"objective is {objective!r}; give one of {', '.join(DEFAULTS)}")
        missing = {name: v for name, v in DEFAULTS[objective].items() if getattr(self, name) is None}
        whole = replace(self, **missing)
        if whole.total_steps < 1 or whole.stages < 1:
            raise InputError(f"total_steps {whole.total_steps} and stages {whole.stages} must be 1 or more")
        if not 0 <= (whole.mu0 or 0) < 1:
            raise InputError(f"mu0 is {whole.mu0}; give 0 (no target network) or more, and less than 1")
        if objective in ("ict", "ect") and whole.mu0:
            raise InputError(f"mu0 is {whole.mu0}, but {objective} has no target network; leave it out")
        s0, s1 = whole.s0 or 0, whole.s1 or 0
        if objective != "ect" and not 2 <= s0 <= max(s1, s0 if objective == "cd" else 0):
            raise InputError(f"s0 {s0}, s1 {s1}: need 2 <= s0 <= s1")
        if objective == "ect" and whole.q <= 1:
            raise InputError(f"q is {whole.q}; give more than 1")
        return whole

    def levels(self, objective: str, step: int) -> int:
        """N(k): number of noise levels at a step; for ECT the number of the stage, from 1."""
        if objective == "cd":
            return int(self.s0 or 2)
        if objective == "ct":
            return schedules.ct_levels(step, self.total_steps, self.s0 or 2, self.s1 or 150)
        if objective == "ict":
            return schedules.ict_levels(step, self.total_steps, self.s0 or 10, self.s1 or 1280)
        return schedules.ect_stage(step, self.total_steps, self.stages) + 1

    def decay(self, objective: str, step: int) -> float:
        """μ(k): decay of the target network at a step, 0 where the network is its own target."""
        if not self.mu0:
            return 0.0
        if objective == "cd":
            return self.mu0
        return schedules.ct_decay(self.levels(objective, step), self.s0 or 2, self.mu0)

    def draw(self, objective: str, step: int, uniform: Tensor, normal: Tensor, noise: NoiseRange) -> Pairs:
        """Pairs of levels for a batch.

        Args:
            objective: "cd", "ct", "ict" or "ect".
            step: Optimiser step.
            uniform: Random numbers in [0,1), (B,): choose among discrete levels.
            normal: Standard normal numbers, (B,): choose ln σ where levels are continuous (ECT).
            noise: The levels' range.
        """
        if objective == "ect":
            return self._continuous(step, normal, noise)
        sigmas = noise.sigmas(self.levels(objective, step)).to(uniform.device, torch.float32)
        count = len(sigmas) - 1
        if objective == "ict":
            edges = schedules.ict_probabilities(sigmas, self.mean or 0.0, self.std or 1.0).cumsum(0)
            index = torch.searchsorted(edges, uniform.contiguous(), right=True).clamp(max=count - 1)
            weight = 1 / (sigmas[index + 1] - sigmas[index])
        else:
            index = (uniform * count).long().clamp(max=count - 1)
            weight = torch.ones_like(uniform)
        return Pairs(sigmas[index + 1], sigmas[index], weight)

    def _continuous(self, step: int, normal: Tensor, noise: NoiseRange) -> Pairs:
        sigma = ((self.mean or 0.0) + (self.std or 1.0) * normal).exp().clamp(noise.sigma_min, noise.sigma_max)
        stage = schedules.ect_stage(step, self.total_steps, self.stages)
        lower = schedules.ect_earlier(sigma, stage, self.q, self.k, self.b)
        lower = torch.where(lower < noise.sigma_min, torch.zeros_like(lower), lower)
        return Pairs(sigma, lower, 1 / (sigma - lower))
