"""Models that are in memory only while they are needed, and how much of it a stage took."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import nn

Part = TypeVar("Part")


class Lazy(Generic[Part]):
    """A model that is loaded when it is first asked for, and can be let go and loaded again.

    Args:
        load: Makes it. None together with ``value`` for a model that is there already and cannot be let go.
        value: The model, if it is there already.
    """

    def __init__(self, load: Callable[[], Part] | None, value: Part | None = None) -> None:
        self.load, self.value, self.keep = load, value, False

    def __call__(self, device: torch.device) -> Part:
        """The model, on a device."""
        if self.value is None:
            assert self.load is not None
            self.value = self.load()
        move = getattr(self.value, "to", None)
        if move is not None:
            move(device)
        return self.value

    def free(self) -> None:
        """Let go of it, if it can be loaded again; else bring it back to the CPU. Not if ``keep`` is set."""
        if self.keep:
            return
        if self.load is not None:
            if self.value is not None:
                self.value = None
                gc.collect()  # parts of a model may refer to each other
        elif isinstance(self.value, nn.Module):
            self.value.to("cpu")


class PeakMemory:
    """Largest memory of each stage in MB: of the process, and of the accelerator where there is one.

    The process' figure can only grow from stage to stage, since the system keeps nothing else.

    Args:
        device: Where the models run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stages: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens inside, and give back what it no longer needs."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            yield
        finally:
            self.stages[name] = {} if sys.platform == "win32" else {"process_mb": round(_process_peak(), 1)}
            if self.device.type == "cuda":
                self.stages[name]["device_mb"] = round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1)
                torch.cuda.empty_cache()


def _process_peak() -> float:
    import resource  # there is none on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
