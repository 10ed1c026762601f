"""Distances between two batches of pictures, one number a sample."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_insert.errors import InputError
from lit_insert.metrics.perceptual import Lpips as Lpips

Distance = Callable[[Tensor, Tensor], Tensor]  # two (B,C,H,W) -> (B,)
NAMES = ("l1", "l2", "l2-32", "pseudo_huber", "lpips")
HUBER_C = 0.00054  # of one number; c grows with the root of how many a sample has (iCT section 3.3)


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of each sample, (B,)."""
    return (a - b).abs().flatten(1).mean(1)


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each sample, (B,)."""
    return (a - b).square().flatten(1).mean(1)


def l2_32(a: Tensor, b: Tensor) -> Tensor:
    """`l2` of the pictures brought to 32 x 32."""
    return l2(*(F.interpolate(x, size=(32, 32), mode="bilinear") for x in (a, b)))


def pseudo_huber(a: Tensor, b: Tensor, c: float | None = None) -> Tensor:
    """sqrt(‖a - b‖² + c²) - c, the norm over the whole sample, (B,).

    Args:
        a: (B,C,H,W).
        b: (B,C,H,W).
        c: Where the distance turns from square to linear; 0.00054 sqrt(C·H·W) by default, 0 for the plain norm.
    """
    square = (a - b).square().flatten(1).sum(1)
    c = HUBER_C * math.sqrt(a[0].numel()) if c is None else c
    # The root's slope at 0 is infinite; c = 0 needs a floor that no real difference falls below.
    return (square + max(c * c, torch.finfo(square.dtype).tiny)).sqrt() - c


def distance_by_name(name: str, huber_c: float | None = None) -> Distance:
    """A distance that a configuration names.

    Args:
        name: One of `NAMES`.
        huber_c: c of the pseudo-Huber distance.

    Raises:
        InputError: If there is none of that name, or LPIPS' weights are missing.
    """
    simple: dict[str, Distance] = {"l1": l1, "l2": l2, "l2-32": l2_32, "pseudo_huber": partial(pseudo_huber, c=huber_c)}
    if name == "lpips":
        return Lpips()
    if name not in simple:
        raise InputError(f"distance is {name!r}; give one of {', '.join(NAMES)}")
    return simple[name]
