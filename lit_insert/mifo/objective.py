"""What makes a word mean one instance: the masked diffusion loss, and losses on where its attention goes.

A is the attention of one token, averaged over heads, at one layer; M its instance's mask at the layer's resolution.
Every loss below sums over the tokens of a sample and averages over the pixels P.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_insert.errors import InputError

Mode = Literal["mifo_paper", "mifo_joint", "break_a_scene", "none"]


@dataclass
class AttentionLoss:
    """Which loss the attention maps get, and when.

    Args:
        mode: "mifo_paper": reward for ``reward_steps``, then penalty (Su et al. 2025). "mifo_joint": both, all the
            time. "break_a_scene": the max-normalised loss (Avrahami et al. 2023), weight ``reward_weight``, at any
            timestep. "none".
        reward_weight: Weight of the reward, or of Break-A-Scene's loss.
        penalty_weight: Weight of the penalty.
        target: Attention that the reward wants inside the mask, above 0 and up to 1.
        reward_steps: Steps until the penalty takes over; mifo_paper only.
        below_timestep: Samples at this noise level and above get no reward or penalty; the number of timesteps
            lets all in.
        layers: Cross-attention layers in the first phase, by place and resolution, such as up:16.
        finetune_layers: The same in the second phase; null for the same layers.
    """

    mode: Mode = "mifo_joint"
    reward_weight: float = 1e-2
    penalty_weight: float = 2e-2
    target: float = 0.5
    reward_steps: int = 200
    below_timestep: int = 500
    layers: list[str] = field(default_factory=lambda: ["up:16", "up:32"])
    finetune_layers: list[str] | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InputError(f"attention.mode is {self.mode!r}; use one of {', '.join(get_args(Mode))}")
        if min(self.reward_weight, self.penalty_weight) < 0:
            raise InputError("attention: reward_weight and penalty_weight must be 0 or more")
        if not 0 < self.target <= 1:
            raise InputError(f"attention.target is {self.target}; give more than 0 and at most 1")


class Weights(NamedTuple):
    """Weights of the three attention losses at one step."""

    reward: float = 0.0
    penalty: float = 0.0
    max_normalised: float = 0.0


def weights_at(options: AttentionLoss, step: int) -> Weights:
    """The schedule.

    Args:
        options: Mode and weights.
        step: Optimiser step of the run, counted over both phases.
    """
    if options.mode == "mifo_paper":
        rewards = step < options.reward_steps
        return Weights(reward=options.reward_weight) if rewards else Weights(penalty=options.penalty_weight)
    if options.mode == "mifo_joint":
        return Weights(options.reward_weight, options.penalty_weight)
    if options.mode == "break_a_scene":
        return Weights(max_normalised=options.reward_weight)
    return Weights()


def gate(options: AttentionLoss, timesteps: Tensor) -> Tensor:
    """Which samples (B,) get an attention loss, boolean: those below the threshold; all for Break-A-Scene."""
    return timesteps < options.below_timestep if options.mode.startswith("mifo") else torch.ones_like(timesteps).bool()


def masked_error(predicted: Tensor, wanted: Tensor, masks: Tensor) -> Tensor:
    """Diffusion loss (B,) inside the instances: the mean over all elements of (U·(y' - y))².

    U is the union of the instances' masks, nearest-resized to the latent. The mean is over the whole tensor, as in
    both papers, so a small instance has a small loss.

    Args:
        predicted: y', (B,C,h,w).
        wanted: y, (B,C,h,w).
        masks: (B,K,1,H,W) in {0,1}; zeros where there is no instance.
    """
    union = F.interpolate(masks.amax(1), predicted.shape[-2:], mode="nearest")
    return (union * (predicted.float() - wanted.float())).square().mean((1, 2, 3))


def reward(maps: Tensor, masks: Tensor, target: float = 0.5) -> Tensor:
    """Reward loss (…,) of maps and masks (…,h,w): the mean over P of (A - target·M)²."""
    return (maps - target * masks).square().mean((-2, -1))


def penalty(maps: Tensor, masks: Tensor) -> Tensor:
    """Penalty (…,) of attention outside the mask: the mean over P of (A·(1-M))²; nothing holds A up inside."""
    return (maps * (1 - masks)).square().mean((-2, -1))


def max_normalised(maps: Tensor, masks: Tensor) -> Tensor:
    """Break-A-Scene's loss (…,): the mean over P of (A/max A - M)²; blind to the size of A."""
    top = maps.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    return (maps / top - masks).square().mean((-2, -1))


def mask_grid(masks: Tensor, size: tuple[int, int], *, smooth: bool) -> Tensor:
    """Masks (B,K,1,H,W) at a layer's resolution, (B,K,h,w): bilinear if smooth, else nearest."""
    flat = masks.flatten(0, 1)
    mode = {"mode": "bilinear", "antialias": False} if smooth else {"mode": "nearest"}
    return F.interpolate(flat, size, **mode)[:, 0].unflatten(0, masks.shape[:2])  # type: ignore[arg-type]


class AttentionTerms(NamedTuple):
    """What attention costs, and how much of it there is where it belongs.

    ``loss``: weighted, summed over layers and tokens, mean over samples. ``inside``: mean attention of the tokens
    within their masks, over layers and the samples that count, without gradient; NaN if none does.
    """

    loss: Tensor
    inside: Tensor


def attention_terms(
    maps: Sequence[Tensor],
    masks: Tensor,
    present: Tensor,
    counts: Tensor,
    weights: Weights,
    *,
    target: float = 0.5,
) -> AttentionTerms:
    """Attention losses of a batch.

    Args:
        maps: One (B,K,h,w) a layer: the attention of each sample's tokens.
        masks: (B,K,1,H,W) in {0,1}, of the instances in the same order.
        present: (B,K) boolean: which of the K places are taken.
        counts: (B,) boolean: which samples count (see `gate`).
        weights: From `weights_at`.
        target: See `reward`.
    """
    takes = (present & counts[:, None]).float()
    total = masks.new_zeros(())
    inside = masks.new_zeros(())
    for a in maps:
        a = a.float()
        size = (a.shape[-2], a.shape[-1])
        m = mask_grid(masks, size, smooth=weights.max_normalised == 0)
        each = torch.zeros_like(takes)
        if weights.reward:
            each = each + weights.reward * reward(a, m, target)
        if weights.penalty:
            each = each + weights.penalty * penalty(a, m)
        if weights.max_normalised:
            each = each + weights.max_normalised * max_normalised(a, m)
        total = total + (each * takes).sum(1).mean()
        with torch.no_grad():
            mean = (a * m).sum((-2, -1)) / m.sum((-2, -1)).clamp(min=1e-6)
            inside = inside + (mean * takes).sum() / takes.sum()
    return AttentionTerms(total, inside / max(len(maps), 1))


def token_columns(ids: Tensor, first: int, instances: Tensor) -> Tensor:
    """Where each sample's tokens stand in its prompt, int64 (B,K); 0 where there is none.

    Args:
        ids: Prompts (B,L).
        first: Id of instance 0's token.
        instances: Numbers of the instances (B,K), -1 for none.
    """
    return (ids[:, None, :] == (first + instances)[..., None]).int().argmax(-1) * (instances >= 0)
