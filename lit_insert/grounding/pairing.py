"""Which source object became which: one-to-one assignment by the similarity of their vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lit_insert.errors import InputError

Labels = Literal["same", "first", "any"]


@dataclass(frozen=True)
class Match:
    """What became of one generated object.

    Attributes:
        context: Number of the contextual object that it was made of; None if there is none.
        similarity: Cosine of their vectors; None without a match.
        best: Number of the most similar contextual object, taken or not; None if there is no candidate.
        best_similarity: Its cosine.
    """

    context: int | None
    similarity: float | None
    best: int | None
    best_similarity: float | None


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """Cosines (G,C) in float64 of vectors (G,D) and (C,D); a zero vector, which stands for nothing, is like nothing."""
    unit = [torch.nn.functional.normalize(v.double(), dim=-1, eps=1e-12) for v in (one, other)]
    return unit[0] @ unit[1].T


def pair(
    generated: Tensor,
    context: Tensor,
    generated_labels: Sequence[str],
    context_labels: Sequence[str],
    *,
    threshold: float = 0.5,
    labels: Labels = "first",
) -> list[Match]:
    """Assign contextual objects to generated ones (Kuhn 1955), each at most once.

    The sum of the similarities above the threshold is the largest possible; a pair below it is no match, and does not
    count in the sum either.

    Args:
        generated: Vectors (G,D).
        context: Vectors (C,D).
        generated_labels: G labels.
        context_labels: C labels.
        threshold: Smallest cosine of a match, in [-1,1].
        labels: "same": a match has the same label. "first": those are assigned first, and what is left over
            regardless of labels. "any": labels do not matter.

    Returns:
        G matches.

    Raises:
        InputError: If ``labels`` is none of these or the threshold is out of range.
    """
    if labels not in ("same", "first", "any"):
        raise InputError(f"pairing.labels is {labels!r}; give same, first or any")
    if not -1 <= threshold <= 1:
        raise InputError(f"pairing.threshold is {threshold:g}; give a cosine from -1 to 1")
    rows, columns = len(generated_labels), len(context_labels)
    if not rows or not columns:
        return [Match(None, None, None, None)] * rows
    similar = cosines(generated, context).cpu().numpy()
    alike = np.array([[a == b for b in context_labels] for a in generated_labels])
    candidates = alike if labels == "same" else np.ones_like(alike)
    found = _assign(similar, alike if labels != "any" else candidates, threshold, {})
    if labels == "first":
        found = _assign(similar, candidates, threshold, found)
    matches = []
    for row in range(rows):
        own = np.where(candidates[row], similar[row], -np.inf)
        best = int(own.argmax()) if candidates[row].any() else None
        match = found.get(row)
        matches.append(
            Match(
                match,
                None if match is None else float(similar[row, match]),
                best,
                None if best is None else float(similar[row, best]),
            )
        )
    return matches


def _assign(similar: np.ndarray, allowed: np.ndarray, threshold: float, done: dict[int, int]) -> dict[int, int]:
    """Rows to columns; those of ``done`` keep theirs."""
    good = allowed & (similar >= threshold)
    good[list(done)] = False
    good[:, list(done.values())] = False
    # One more than the threshold leaves away, so that a match is worth something even exactly at it.
    worth = np.where(good, similar - threshold + 1e-6, 0.0)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    return done | {int(r): int(c) for r, c in zip(rows, columns, strict=True) if good[r, c]}
