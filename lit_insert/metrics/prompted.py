"""Does a picture of the procedural world show what its prompt names? Judged place by place."""

from itertools import permutations
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_insert.metrics.insertion import InsertionJudge, crop_around

PLACES = ((0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74))


@torch.no_grad()
def place_logits(judge: InsertionJudge, image: Tensor) -> list[Tensor]:
    """The judge's logits at the four places of each picture.

    Args:
        judge: A trained judge.
        image: (N,3,H,W) in [-1,1].

    Returns:
        Shape, colour and texture logits, each (N,4,classes).
    """
    size = image.new_tensor([image.shape[-1], image.shape[-2]])
    crops = [crop_around(image, (image.new_tensor(place) * size).expand(len(image), 2)) for place in PLACES]
    logits = judge(torch.cat(crops))
    return [part.unflatten(0, (len(PLACES), len(image))).transpose(0, 1) for part in logits]


class PromptedObjects(Metric):
    """Recall of the things that prompts name, wherever they stand.

    A named thing's colour (shape, both, all three) is right if some place shows it; each place serves one thing
    only, the assignment that finds most of them counts. An empty place is classified too, and so may by chance serve
    a thing that is missing: read the figures beside those of other prompts (`control`), which is what that chance
    gives. ``compute`` returns "shape", "color", "both", "all" and the same with "control_" in front.

    Args:
        judge: A trained judge.
        **kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    right: Tensor
    control: Tensor
    count: Tensor
    NAMES = ("shape", "color", "both", "all")

    def __init__(self, judge: InsertionJudge, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.judge = judge.eval()
        self.add_state("right", default=torch.zeros(len(self.NAMES)), dist_reduce_fx="sum")
        self.add_state("control", default=torch.zeros(len(self.NAMES)), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, image: Tensor, labels: Tensor) -> None:
        """Add pictures.

        Args:
            image: (N,3,H,W) in [-1,1].
            labels: What each prompt names, (N,K,3), -1 for none.
        """
        seen = torch.stack([part.argmax(-1) for part in place_logits(self.judge, image)], dim=-1)
        self.right += _found(seen, labels)
        if len(labels) > 1:
            self.control += _found(seen, labels.roll(1, 0))
        self.count += (labels[..., 0] >= 0).sum()

    def compute(self) -> dict[str, float]:
        """All figures, fractions in [0,1]."""
        figures = dict(zip(self.NAMES, (self.right / self.count).tolist(), strict=True))
        other = (self.control / self.count).tolist()
        return figures | {f"control_{name}": value for name, value in zip(self.NAMES, other, strict=True)}


def _found(seen: Tensor, labels: Tensor) -> Tensor:
    """How many of the things named (N,K,3) are among those seen (N,P,3): by shape, colour, both, all."""
    same = seen[:, None] == labels[:, :, None]
    kinds = torch.stack([same[..., 0], same[..., 1], same[..., :2].all(-1), same.all(-1)]).float()
    things, places = labels.shape[1], seen.shape[1]
    assignments = torch.tensor(list(permutations(range(places), things)), device=seen.device)
    return kinds[:, :, torch.arange(things), assignments].sum(-1).amax(-1).sum(-1)
