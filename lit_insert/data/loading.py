"""Loaders that resume exactly: the state is (epoch, batches taken), whatever the workers and the rank.

Lightning saves the loader state of rank 0 only and hands it to every rank. That is right here, because the
state says how far *every* rank has come and each rank derives its own samples from it.
"""

import gc
import hashlib
import logging
import signal
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, default_collate

from lit_insert.data.orders import Order, PlainOrder, rank_spans
from lit_insert.errors import InputError

log = logging.getLogger(__name__)
Batch = TypeVar("Batch")
_SEARCH = 256  # neighbours tried when a whole batch is unreadable


class SkippedSample(Exception):
    """A readable sample that the rules refuse (no object, too small …); it is left out and counted.

    Args:
        name: What was refused: an id or a file.
        reason: Why, in a word or two; counts are kept per reason.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


class BrokenSample(SkippedSample):
    """A sample that cannot be read; counts towards the limit of broken samples."""


class Key(NamedTuple):
    """What the sampler hands to a worker: augmentation depends on the epoch too."""

    epoch: int
    number: int


class Failure(NamedTuple):
    """A sample that did not make it into its batch, on its way from a worker to the main process."""

    name: str
    reason: str
    kind: str  # "broken", "skipped" or "fatal"


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """The random numbers of one sample in one epoch, whoever draws them."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def this_rank() -> tuple[int, int]:
    """(rank, world size) of this process, (0, 1) outside a process group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def processed_batches(owner: Any) -> int:
    """Batches of this epoch that ``owner.trainer`` has finished with; without a trainer, no bound.

    A step that is broken off (Ctrl-C, an error) has its batch handed out but not learnt from. Lightning
    repeats that batch number after resuming, so it must get that batch again.

    Args:
        owner: A LightningDataModule; pass ``partial(processed_batches, self)`` to the training loader.
    """
    trainer = getattr(owner, "trainer", None)
    if trainer is None:
        return 1 << 62
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.processed)


class EpochBatches:
    """Batch sampler of one rank; yields lists of `Key`.

    Args:
        order: Arranges the samples of an epoch.
        spans: Cut of the positions into batches, from `rank_spans`.
        rank: This process's rank.
    """

    def __init__(self, order: Order, spans: Any, rank: int) -> None:
        self.order, self.spans, self.rank = order, spans, rank
        self.epoch, self.start = 0, 0
        self.sampler = self  # Lightning looks here for set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        order = self.order(epoch, self.spans)
        for first, stop in self.spans[self.start :, self.rank].tolist():
            yield [Key(epoch, index) for index in order[first:stop].tolist()]


class _Reader:
    """The dataset as the workers see it: keys in, samples and failures out; never raises for a bad sample."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def _read(self, keys: Sequence[Key]) -> tuple[list[Any], list[Failure]]:
        if not hasattr(self.dataset, "sample"):
            return self._read_plain([key.number for key in keys])
        samples: list[Any] = []
        failures: list[Failure] = []
        for key in keys:
            try:
                samples.append(self.dataset.sample(key.number, key.epoch))
            except SkippedSample as error:
                kind = "broken" if isinstance(error, BrokenSample) else "skipped"
                failures.append(Failure(error.name, error.reason, kind))
            except InputError as error:
                failures.append(Failure("", str(error), "fatal"))
        return samples, failures

    def _read_plain(self, indices: list[int]) -> tuple[list[Any], list[Failure]]:
        try:
            if hasattr(self.dataset, "__getitems__"):
                return self.dataset.__getitems__(indices), []
            return [self.dataset[index] for index in indices], []
        except InputError as error:
            return [], [Failure("", str(error), "fatal")]

    def __getitems__(self, keys: Sequence[Key]) -> tuple[list[Any], list[Failure]]:
        samples, failures = self._read(keys)
        epoch, index = keys[-1]
        for step in range(1, min(_SEARCH, len(self)) + 1):
            if samples or any(f.kind == "fatal" for f in failures):
                break
            samples, more = self._read([Key(epoch, (index + step) % len(self))])
            failures += more
        return samples, failures


class _Collate:
    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, read: tuple[list[Any], list[Failure]]) -> tuple[Any, list[Failure]]:
        samples, failures = read
        return (self.collate(samples) if samples else None), failures


def _settle(worker: int) -> None:
    """Make a worker outlive a signal to the process group, and leave its parent's memory alone.

    Ctrl-C and SLURM signal every process of a run, but only the main one can end it between two steps, and for
    that it still needs this worker's batch. The next signal, such as the loader's own on shutting down, ends the
    worker as usual. Freezing keeps the garbage collector from writing to, and so copying, inherited pages.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: signal.signal(received, signal.SIG_DFL))
    gc.freeze()


class ResumableLoader(Generic[Batch]):
    """Batches of one rank, with ``state_dict``/``load_state_dict`` that Lightning saves and restores.

    Not a `DataLoader`, so that Lightning neither replaces the sampler nor rebuilds it; it reads through one.
    The inner iterator starts with the first batch asked for, by when Lightning has set the epoch.

    Args:
        dataset: Has ``__len__`` and either ``sample(index, epoch)``, which may raise `SkippedSample`, or
            ``__getitem__``/``__getitems__``.
        batch_size: Samples per batch and rank.
        num_workers: Reading processes, kept alive between epochs; 0 reads in this process.
        order: Arranges the samples of an epoch.
        drop_last: Leave out the last, smaller batch.
        collate_fn: Joins a list of samples.
        max_broken_fraction: Largest fraction of the dataset that may be unreadable.
        processed: Number of batches of this epoch that training has finished, where it can lag behind the
            number handed out (an exception inside a step).
        rank: Rank; of the process group if not given.
        world_size: Number of ranks; of the process group if not given.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        num_workers: int,
        order: Order,
        drop_last: bool = False,
        collate_fn: Callable[[list[Any]], Batch] = default_collate,
        max_broken_fraction: float = 0.02,
        processed: Callable[[], int] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; give 1 or more")
        own_rank, own_world = this_rank()
        self.rank = own_rank if rank is None else rank
        self.world_size = own_world if world_size is None else world_size
        self.dataset, self.batch_size, self.processed = dataset, batch_size, processed
        self.max_broken_fraction = max_broken_fraction
        self.broken: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        spans = rank_spans(len(dataset), batch_size, self.world_size, drop_last)
        self.batch_sampler = EpochBatches(order, spans, self.rank)
        self._at, self._taken = 0, 0
        self._loaded, self._drawn = False, False
        self._end: weakref.finalize[..., Any] | None = None
        self._inner: DataLoader[Any] = DataLoader(
            _Reader(dataset),  # type: ignore[arg-type]
            batch_sampler=self.batch_sampler,  # type: ignore[arg-type]
            num_workers=num_workers,
            collate_fn=_Collate(collate_fn),  # type: ignore[arg-type]
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_settle,
            generator=torch.Generator(),  # else every epoch's start would draw from the global stream
        )

    @property
    def _iterator(self) -> Any:  # Lightning stops the workers through this name
        return self._inner._iterator

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        self._inner._iterator = value
        if value is None and self._end is not None:
            self._end.detach()
            self._end = None

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def close(self) -> None:
        """End the workers; the next iteration starts new ones. Lightning does the same when a stage ends."""
        if self._end is not None:
            self._end()
        self._iterator = None

    def _start(self) -> Iterator[tuple[Any, list[Failure]]]:
        """The inner iterator, whose workers end with this loader."""
        iterator = iter(self._inner)
        if self._inner.num_workers and self._end is None:
            # Left to the garbage collector, its queues would close before it told the workers to stop, and it would
            # wait five seconds for each. The finalizer keeps it out of the garbage.
            self._end = weakref.finalize(self, iterator._shutdown_workers)  # type: ignore[attr-defined]
        return iterator

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration reads."""
        self.batch_sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Batch]:
        batches = self.batch_sampler
        if not self._loaded:
            self._at, self._taken = batches.epoch, 0
        elif self._drawn or batches.epoch != self._at:
            # Resumed at the end of an epoch, Lightning may count an empty one; ours follow without a gap.
            self._at, self._taken = self._at + 1, 0
        self._drawn = True
        batches.epoch, batches.start = self._at, self._taken
        for batch, failures in self._start():
            self._note(failures)
            if batch is None:
                raise InputError(f"none of {_SEARCH} samples in a row can be used; {_last(self)}")
            self._taken += 1
            yield batch
        batches.set_epoch(self._at + 1)  # plain loops go on to the next epoch; Lightning sets it anyway

    def _note(self, failures: Sequence[Failure]) -> None:
        for name, reason, kind in failures:
            if kind == "fatal":
                raise InputError(reason)
            if kind == "skipped":
                self.skipped[name] = reason
            elif name not in self.broken:
                self.broken[name] = reason
                log.warning("left out, cannot be read: %s: %s (%d so far)", name, reason, len(self.broken))
        if len(self.broken) > self.max_broken_fraction * len(self.dataset):
            raise InputError(
                f"{len(self.broken)} of {len(self.dataset)} samples cannot be read, more than "
                f"max_broken_fraction={self.max_broken_fraction:g} allows; {_last(self)}; mend or remove them"
            )

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch, and what must be unchanged for it to mean the same samples."""
        epoch, taken = self._at, self._taken
        if not self._loaded and epoch != self.batch_sampler.epoch:
            epoch, taken = self.batch_sampler.epoch, 0
        if self.processed is not None and self._drawn:
            taken = min(taken, self.processed())
        return {
            "epoch": epoch,
            "batches": taken,
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            **self.batch_sampler.order.state(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a saved place.

        Raises:
            InputError: If the place is within an epoch and the data, seed, batch size or ranks are others.
        """
        state = dict(state_dict)
        self.batch_sampler.order.adopt(state)
        mine = self.state_dict()
        if state["batches"]:
            for key in mine.keys() - {"epoch", "batches"}:
                if mine[key] != state.get(key):
                    raise InputError(
                        f"cannot resume within an epoch: {key} was {state.get(key)}, now {mine[key]}; "
                        "set it back, or start a new run from the weights (--init_from)"
                    )
        self._at, self._taken = state["epoch"], state["batches"]
        self._loaded, self._drawn = True, False
        self.batch_sampler.set_epoch(self._at)


def _last(loader: ResumableLoader[Any]) -> str:
    failures = loader.broken or loader.skipped
    name, reason = next(reversed(failures.items()), ("", "no reason known"))
    return f"the last is {name}: {reason}"


def resumable_loader(
    dataset: Any,
    batch_size: int,
    num_workers: int = 0,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    collate_fn: Callable[[list[Any]], Batch] = default_collate,
    order: Order | None = None,
    max_broken_fraction: float = 0.02,
    processed: Callable[[], int] | None = None,
) -> ResumableLoader[Batch]:
    """A loader for ``dataset`` whose order is a pure function of (seed, epoch, rank).

    Args:
        dataset: Has ``__len__`` and ``sample(index, epoch)`` or ``__getitem__``.
        batch_size: Samples per batch and rank.
        num_workers: Reading processes.
        seed: Seed of the order.
        shuffle: Shuffle every epoch anew.
        drop_last: Leave out the last, smaller batch.
        collate_fn: Joins a list of samples.
        order: Another order than one permutation of everything.
        max_broken_fraction: Largest fraction of the dataset that may be unreadable.
        processed: Number of batches of this epoch that training has finished.

    Raises:
        InputError: If the dataset is too small for the batch size and the ranks.
    """
    return ResumableLoader(
        dataset,
        batch_size,
        num_workers,
        order or PlainOrder(len(dataset), seed, shuffle),
        drop_last=drop_last,
        collate_fn=collate_fn,
        max_broken_fraction=max_broken_fraction,
        processed=processed,
    )
