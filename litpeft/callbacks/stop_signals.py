"""Stop signals: Ctrl-C, SIGTERM, and SIGUSR1, which SLURM can send before the time limit."""

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
    """Remember a stop signal, so that the run saves between two steps and then stops. A second signal stops at once.

    Replaces Lightning's handlers, which may stop or save in the middle of a step; Lightning restores the previous
    handlers when the trainer ends.

    Attributes:
        received: number of the signal received, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._process = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Install the handlers. A signal that is ignored (`nohup`, background jobs of a shell) stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._process = os.getpid()
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._hear)

    def forget(self) -> None:
        """Restore the previous handlers."""
        while self._before:
            signal.signal(*self._before.popitem())

    def agree(self, device: torch.device) -> None:
        """Share a signal received by any process with all. Collective: every process must call it."""
        self.received = processes.max_over_ranks(self.received or 0, device) or None

    def exception(self) -> BaseException:
        """Return the exception that ends the run with the exit code 128 + signal number."""
        if self.received == signal.SIGINT:
            return KeyboardInterrupt()
        stop = SIGTERMException()
        stop.code = 128 + self.received
        return stop

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if (
            os.getpid() != self._process
        ):  # a dataloader worker: it also receives Ctrl-C, but is still needed to finish the step
            if number != signal.SIGINT:
                os._exit(128 + number)
            return
        again, self.received = self.received is not None, number
        if again:
            raise self.exception()
        os.write(2, b"\nlitpeft: stopping after this step is saved; press again to stop at once.\n")
