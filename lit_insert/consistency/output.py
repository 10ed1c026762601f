"""What a generator gives back, in the form asked for."""

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from lit_insert.errors import InputError
from lit_insert.images import to_pil


@dataclass
class ConsistencyOutput(BaseOutput):
    """What `ConsistencyPipeline` returns.

    Attributes:
        images: PIL pictures; or with ``output_type`` "pt" float32 (3,H,W) tensors in [0,1], or with "np"
            (H,W,3) arrays in [0,1].
        labels: The class of each picture; None for a model without classes.
        sigmas: The noise levels used, falling.
    """

    images: list[Any]
    labels: list[int] | None = None
    sigmas: list[float] = field(default_factory=list)


def label_tensor(labels: list[int] | None, start: int, count: int, device: torch.device) -> Tensor | None:
    """Some of the labels as the network takes them, (N,) int64."""
    return None if labels is None else torch.tensor(labels[start : start + count], device=device)


def finish(x: Tensor, output_type: str) -> list[Any]:
    """Pictures (N,3,H,W) in [-1,1] in the form asked for.

    Raises:
        InputError: If the form is unknown.
    """
    if output_type == "pil":
        return [to_pil(picture) for picture in x]
    unit = (x.float() / 2 + 0.5).clamp(0, 1).cpu()
    if output_type == "pt":
        return list(unit)
    if output_type == "np":
        return [picture.permute(1, 2, 0).numpy() for picture in unit]
    raise InputError(f"output_type {output_type!r}: give pil, pt or np")
