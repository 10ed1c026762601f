"""Learning-rate schedules that torch does not have under one name."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupCosine(LambdaLR):
    """Linear warm-up, a plateau, then a cosine fall; each parameter group keeps its own peak.

    Args:
        optimizer: The optimiser.
        total_steps: Steps in all; afterwards the rate stays at its end.
        warmup_steps: Steps from 0 to the peak.
        plateau: Fraction of the steps after warm-up that stay at the peak.
        final_ratio: End of the fall as a fraction of the peak.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 100,
        plateau: float = 0.0,
        final_ratio: float = 0.0,
    ) -> None:
        hold = warmup_steps + plateau * max(total_steps - warmup_steps, 0)

        def factor(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / warmup_steps
            if step < hold:
                return 1.0
            progress = min((step - hold) / max(total_steps - hold, 1), 1.0)
            return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

        super().__init__(optimizer, factor)
