"""Ends a run between two steps when a signal asks for it, on all ranks at once."""

import signal
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from torch import distributed


class Interrupted(SystemExit):
    """A run that a signal ended after its checkpoint was written; the exit status is 128 + signal.

    Args:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class StopSignals:
    """Notes SIGTERM and the first SIGINT instead of dying of them.

    Lightning's own handler talks to the other ranks from inside the signal handler, where the collective can meet
    another one half way, and ends the process with status 0. Here the ranks agree at the end of each step, over
    gloo, which does not make an accelerator wait. A second SIGINT raises `KeyboardInterrupt` at once.
    """

    def __init__(self) -> None:
        self._received = 0
        self._previous: dict[int, Any] = {}
        self._group: Any = None

    def install(self, trainer: pl.Trainer) -> None:
        """Take the signals over."""
        if trainer.world_size > 1 and distributed.is_initialized() and self._group is None:
            self._group = distributed.new_group(backend="gloo")
        if threading.current_thread() is not threading.main_thread():
            return
        if trainer.received_sigterm:
            trainer._signal_connector.received_sigterm = False
            self._received = signal.SIGTERM
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = signum

    def agreed(self, trainer: pl.Trainer) -> int:
        """The signal that any rank has received, 0 for none; every rank must call it."""
        if self._group is None:
            return self._received
        flag = torch.tensor([self._received])
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX, group=self._group)
        return int(flag)

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
