"""What drawing with boxes gives back."""

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from lit_insert.mifo.boxes import Box
from lit_insert.mifo.sampling import Control


@dataclass
class SynthesisOutput(BaseOutput):
    """What `SynthesisPipeline` returns, one entry a picture.

    Attributes:
        images: PIL pictures; or with ``output_type`` "pt" float32 tensors (3,H,W) in [0,1], or latents (C,h,w).
        seeds: The seed of each.
        boxes: The boxes, the same for all; empty without.
        losses: Loss of the guidance before its first step and after its last; None where there was none.
        regions: Boolean (S,h,w), the last regions of the subjects; None where they were the boxes.
    """

    images: list[Any]
    seeds: list[int]
    boxes: list[Box] = field(default_factory=list)
    losses: list[tuple[float, float] | None] = field(default_factory=list)
    regions: list[Tensor | None] = field(default_factory=list)


def note_control(output: SynthesisOutput, control: Control | None, count: int) -> None:
    """Take over what the control of a batch of ``count`` pictures has to say; None if there was none."""
    losses = control.losses if control is not None else []
    pairs = torch.stack([losses[0][0], losses[-1][1]], dim=1).tolist() if losses else [None] * count
    output.losses += [None if pair is None else (pair[0], pair[1]) for pair in pairs]
    refined = None if control is None else control.regions.refined
    output.regions += [None] * count if refined is None else list(refined.cpu())
