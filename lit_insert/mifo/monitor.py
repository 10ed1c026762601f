"""Watching whether tokens keep attending to their instances."""

import logging
import math

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)
_KEEP, _FALL = 0.95, 0.5


class CollapseMonitor(nn.Module):
    """Running mean of the attention of tokens inside their own masks, and a warning when it falls.

    A penalty on attention outside the mask is least where there is no attention at all. So what there is inside is
    remembered when the reward ends, and a fall below half of that is told once.

    Attributes:
        state: float64 (3,): running mean, number of values, remembered mean (0 for none yet).
    """

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(3, dtype=torch.float64))
        self.warned = False

    @property
    def inside(self) -> float:
        """The running mean; 0 before the first value."""
        return float(self.state[0])

    @property
    def reference(self) -> float:
        """The mean when the reward ended; 0 before."""
        return float(self.state[2])

    @property
    def collapsed(self) -> bool:
        """Whether the mean is below half of the reference."""
        return self.inside < _FALL * self.reference

    def note(self, inside: Tensor, rewarded: bool) -> None:
        """Take in a step.

        Args:
            inside: Mean attention inside the masks, in [0,1]; NaN if the step had none.
            rewarded: Whether the step still belongs to the phase that raises it.
        """
        value = float(inside)
        if not math.isnan(value):
            count = float(self.state[1])
            keep = min(_KEEP, count / (count + 1))
            self.state[0] = keep * self.state[0] + (1 - keep) * value
            self.state[1] = count + 1
        if not rewarded and not self.reference:
            self.state[2] = self.state[0]
        if self.collapsed and not self.warned:
            self.warned = True
            log.warning(
                "attention inside the masks has fallen from %.3f to %.3f: the penalty wins; keep the reward beside it "
                "(attention.mode: mifo_joint) or lower attention.penalty_weight",
                self.reference,
                self.inside,
            )
