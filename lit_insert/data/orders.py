"""In which order an epoch visits its samples, and which rank gets which of them.

Both are pure functions of (seed, epoch): there is no random state to save, so the place in an epoch is one
number.
"""

from typing import Protocol

import numpy as np

from lit_insert.errors import InputError

_STREAMS = {"shuffle": 1, "groups": 2, "window": 3}


def rank_spans(length: int, batch_size: int, world_size: int, drop_last: bool) -> np.ndarray:
    """Cut ``length`` positions into batches, the same number for every rank.

    Consecutive ranks take consecutive pieces of a global batch, so ``W`` ranks of ``b`` samples see what
    one process of ``W*b`` sees. A last global batch with fewer samples than ranks is evened out together
    with the one before it; only where that is impossible (``batch_size`` 1) do the last ``length %
    world_size`` positions stay out.

    Returns:
        int64 (batches, world_size, 2): half-open [start, stop) positions, none empty, none longer than
        ``batch_size``, disjoint.

    Raises:
        InputError: If not every rank would get a batch.
    """
    step = batch_size * world_size
    full, rest = divmod(length, step)
    tail = np.empty((0, world_size, 2), np.int64)
    if rest and not drop_last:
        if rest < world_size and full and batch_size > 1:
            full, rest = full - 1, rest + step
        rows = 2 if rest > step else 1
        if rest >= world_size:
            edges = full * step + rest * np.arange(rows * world_size + 1) // (rows * world_size)
            tail = np.stack([edges[:-1], edges[1:]], -1).reshape(rows, world_size, 2)
    starts = np.arange(full * world_size, dtype=np.int64).reshape(full, world_size) * batch_size
    spans = np.concatenate([np.stack([starts, starts + batch_size], -1), tail])
    if not len(spans):
        need = step if drop_last else world_size
        raise InputError(
            f"{length} samples are too few for batch_size {batch_size} on {world_size} rank(s)"
            f"{' with drop_last' if drop_last else ''}: give at least {need} or lower batch_size"
        )
    return spans


def _rng(seed: int, epoch: int, use: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, _STREAMS[use]])))


class Order(Protocol):
    """Arranges the samples of an epoch over the positions that `rank_spans` cut."""

    def __call__(self, epoch: int, spans: np.ndarray) -> np.ndarray:
        """Sample numbers by position, int64 (positions,)."""

    def state(self) -> dict[str, int | str]:
        """What must be equal for the same order to come out again."""

    def adopt(self, state: dict[str, int | str]) -> None:
        """Take over the free parameters of a saved state."""


class PlainOrder:
    """Every sample equally cheap to reach: one permutation of all, or none.

    Args:
        length: Number of samples.
        seed: Seed of the permutation.
        shuffle: False visits 0, 1, 2, …
    """

    def __init__(self, length: int, seed: int = 0, shuffle: bool = True) -> None:
        self.length, self.seed, self.shuffle = length, seed, shuffle

    def __call__(self, epoch: int, spans: np.ndarray) -> np.ndarray:
        """Sample numbers by position."""
        if not self.shuffle:
            return np.arange(self.length)
        return _rng(self.seed, epoch, "shuffle").permutation(self.length)

    def state(self) -> dict[str, int | str]:
        """Kind, length and seed."""
        return {"order": "shuffle" if self.shuffle else "plain", "length": self.length, "seed": self.seed}

    def adopt(self, state: dict[str, int | str]) -> None:
        """Nothing to take over."""


class BlockOrder:
    """Samples lie in groups that are read whole (parquet row groups): shuffle groups, then within windows.

    The groups are permuted, laid end to end and cut into one stretch for each (rank, lane). Batch ``g`` of
    a rank comes from lane ``g % lanes``, which is the loader's worker ``g % num_workers`` when there are
    as many lanes as
    workers: each worker reads its own stretch, front to back, and holds one window of it.

    Args:
        groups: Group of each sample, non-decreasing, shape (length,).
        seed: Seed of the permutations.
        shuffle: False keeps the stored order within each stretch.
        window: Samples shuffled together, and therefore held in memory, per lane.
        lanes: Stretches per rank: the number of loader workers, at least 1.
    """

    def __init__(
        self, groups: np.ndarray, seed: int = 0, shuffle: bool = True, window: int = 1000, lanes: int = 1
    ) -> None:
        self.groups, self.seed, self.shuffle = groups, seed, shuffle
        self.window, self.lanes = window, lanes

    def _sequence(self, epoch: int) -> np.ndarray:
        """All samples, groups permuted and each group kept together."""
        length = len(self.groups)
        if not self.shuffle or not length:
            return np.arange(length)
        first = np.flatnonzero(np.r_[True, self.groups[1:] != self.groups[:-1]])
        sizes = np.diff(np.r_[first, length])
        chosen = _rng(self.seed, epoch, "groups").permutation(len(first))
        taken = sizes[chosen]
        offset = np.arange(length) - np.repeat(np.cumsum(taken) - taken, taken)
        return np.repeat(first[chosen], taken) + offset

    def __call__(self, epoch: int, spans: np.ndarray) -> np.ndarray:
        """Sample numbers by position; positions outside every span get none and are cut off."""
        batches, ranks = spans.shape[:2]
        sizes = (spans[..., 1] - spans[..., 0]).ravel()
        stretch = np.arange(ranks) * self.lanes + (np.arange(batches) % self.lanes)[:, None]
        owner = np.repeat(stretch.ravel(), sizes)
        slots = np.argsort(owner, kind="stable")
        sequence = self._sequence(epoch)[: len(slots)]
        if self.shuffle:
            counts = np.bincount(owner, minlength=ranks * self.lanes)
            start = np.repeat(np.cumsum(counts) - counts, counts)
            window = (np.arange(len(slots)) - start) // self.window
            draw = _rng(self.seed, epoch, "window").random(len(slots))
            sequence = sequence[np.lexsort((draw, window, owner[slots]))]
        order = np.empty(len(slots), np.int64)
        order[slots] = sequence
        return order

    def state(self) -> dict[str, int | str]:
        """Kind, length, seed, window and lanes."""
        kind = "blocks" if self.shuffle else "plain blocks"
        return {
            "order": kind,
            "length": len(self.groups),
            "seed": self.seed,
            "window": self.window,
            "lanes": self.lanes,
        }

    def adopt(self, state: dict[str, int | str]) -> None:
        """Keep the saved number of lanes, so that another number of workers changes nothing."""
        if state.get("order") == self.state()["order"]:
            self.lanes = int(state["lanes"])
