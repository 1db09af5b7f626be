"""Being asked to stop: Ctrl-C, SIGTERM, and SIGUSR1, which SLURM sends before it takes a machine away."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from litpeft.training import processes

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # Windows has no SIGUSR1


class StopSignals:
    """Remember a signal instead of ending at once, so that the run can save itself where nothing is half done.

    A second one ends it at once. Lightning's own handlers, which stop within accumulated batches or save in the midst
    of a step, are replaced; it puts back what was there before when the trainer ends.

    Attributes:
        received: the signal that asked to stop.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._process = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """From now on. A signal that is ignored, as by `nohup` or a shell's background jobs, stays so."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._process = os.getpid()
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._hear)

    def forget(self) -> None:
        """As it was before."""
        while self._before:
            signal.signal(*self._before.popitem())

    def agree(self, device: torch.device) -> None:
        """A signal to one of several processes is one to all of them, from here on. All have to ask."""
        self.received = processes.most(self.received or 0, device) or None

    def exception(self) -> BaseException:
        """What ends the run; its exit code is the shell's for the signal."""
        if self.received == signal.SIGINT:
            return KeyboardInterrupt()
        stop = SIGTERMException()
        stop.code = 128 + self.received
        return stop

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that makes batches: Ctrl-C goes to it too, and it is still needed
            if number != signal.SIGINT:
                os._exit(128 + number)
            return
        again, self.received = self.received is not None, number
        if again:
            raise self.exception()
        os.write(2, b"\nlitpeft: stopping when this step is done and saved; once more stops at once.\n")
