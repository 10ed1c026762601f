"""Is each thing the one that was asked for? Its own reference against the others', and the prompt."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

_PLACEHOLDER = re.compile(r"<[^<>|\s]+>")


class IdentityMargin(Metric):
    """How much more a generated thing resembles its own reference than the nearest of the others.

    margin_k = sim(g_k, r_k) - max_{j≠k} sim(g_k, r_j), sim the cosine in an encoder's space. ``compute`` returns
    "own" and "other" (the two terms), "margin", and "positive", the share of things whose margin is above 0.

    Args:
        encoder: Maps pictures (N,…) to vectors (N,D).
        **kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    total: Tensor
    count: Tensor
    NAMES = ("own", "other", "margin", "positive")

    def __init__(self, encoder: Callable[[Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder
        self.add_state("total", default=torch.zeros(len(self.NAMES), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, generated: Tensor, reference: Tensor) -> None:
        """Add the things of one picture.

        Args:
            generated: Crops of the K generated things, (K,…), K at least 2.
            reference: Crops of their references, in the same order.

        Raises:
            ValueError: If the numbers differ, or there is nothing to confuse a thing with.
        """
        if len(generated) != len(reference) or len(generated) < 2:
            raise ValueError(f"{len(generated)} things and {len(reference)} references: give as many, two or more")
        made, wanted = (F.normalize(self.encoder(x).double(), dim=-1) for x in (generated, reference))
        similarity = made @ wanted.T
        own = similarity.diagonal()
        other = (similarity - 3 * torch.eye(len(own), dtype=similarity.dtype, device=similarity.device)).amax(1)
        margin = own - other
        self.total += torch.stack([v.sum() for v in (own, other, margin, (margin > 0).double())])
        self.count += len(own)

    def compute(self) -> dict[str, float]:
        """Means over all things; NaN before anything was added."""
        return dict(zip(self.NAMES, (self.total / self.count).tolist(), strict=True))


def plain_prompt(prompt: str, words: Mapping[str, str] | None = None) -> str:
    """A prompt without learned tokens: each becomes its word, and "object" where none is known.

    Args:
        prompt: Such as "a photo of <asset0> on the beach".
        words: Token to word.
    """
    return _PLACEHOLDER.sub(lambda match: (words or {}).get(match[0], "object"), prompt)


class PromptSimilarity(Metric):
    """Mean cosine between pictures and their prompts, the latter through `plain_prompt`.

    Args:
        image_encoder: Maps pictures (N,…) to vectors (N,D).
        text_encoder: Maps N texts to vectors (N,D) of the same space.
        words: Token to the word that stands in for it.
        **kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(
        self,
        image_encoder: Callable[[Tensor], Tensor],
        text_encoder: Callable[[list[str]], Tensor],
        words: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_encoder, self.text_encoder, self.words = image_encoder, text_encoder, dict(words or {})
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, image: Tensor, prompts: Sequence[str]) -> None:
        """Add pictures with a prompt each.

        Raises:
            ValueError: If there are not as many of both.
        """
        if len(image) != len(prompts):
            raise ValueError(f"{len(image)} pictures with {len(prompts)} prompts")
        texts = self.text_encoder([plain_prompt(prompt, self.words) for prompt in prompts])
        cosine = F.cosine_similarity(self.image_encoder(image).double(), texts.double(), dim=-1)
        self.total += cosine.sum()
        self.count += len(cosine)

    def compute(self) -> Tensor:
        """Mean cosine, float64 scalar in [-1,1]; NaN before anything was added."""
        return self.total / self.count
