"""Where the processes of a run wait for each other before their process group exists.

A process that fails before, for example because a file is missing on its machine, leaves its message in the store of
the run, which the process group uses later. So the others end too, instead of waiting for a process that never comes.
Processes that Lightning starts need no meeting: Lightning ends all of them when one fails.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from torch import distributed as dist

from litpeft.errors import UserError

POLL_SECONDS = 0.2
READ_SECONDS = 5.0  # time for the others to read a message, before the process that has failed ends
CONNECT = timedelta(minutes=10)  # time for the first process to start
HERE, FAILED, READ, REPORTED = "here", "failed", "read", "reported"  # keys in the store


class Meeting:
    """The processes of one run, as one of them sees the others.

    Args:
        environment: Lightning's view of the launcher: address and port of the store, rank and number of processes.
    """

    def __init__(self, environment: Any) -> None:
        self.rank, self.count = environment.global_rank(), environment.world_size()
        self.over = self.count == 1
        self._place = environment.main_address, environment.main_port
        self._store: dist.Store | None = None
        if self.over:
            return
        launcher_serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's own store
        if self.rank == 0 and not launcher_serves:
            self._connect(True)
        else:  # in a thread, because the first process may start later
            threading.Thread(target=self._connect, args=(False,), daemon=True).start()

    def wait(self) -> None:
        """Wait until all processes are here.

        Raises:
            UserError: another process has failed, with its message.
        """
        if self.over:
            return
        lost = "the first process of the run ended before all had started; see its output."
        store = self._connected(CONNECT.total_seconds())
        if store is None:
            raise UserError(lost)
        try:
            store.add(HERE, 1)
            while store.add(HERE, 0) < self.count:
                if store.check([FAILED]):
                    message = store.get(FAILED).decode()
                    store.add(READ, 1)
                    raise UserError(message)
                time.sleep(POLL_SECONDS)
        except RuntimeError as error:  # the store ended with the first process
            raise UserError(lost) from error
        self.over = True

    def fail(self, message: str) -> bool:
        """Tell the other processes why this one ends; return whether the first process has reported a failure."""
        if self.over or (store := self._connected(READ_SECONDS)) is None:
            return False
        end = time.monotonic() + READ_SECONDS
        with suppress(RuntimeError):
            if not store.check([FAILED]):
                store.set(FAILED, f"process {self.rank}: {message}")
            if self.rank == 0:
                store.set(REPORTED, "yes")
                while store.add(READ, 0) < self.count - 1 and time.monotonic() < end:
                    time.sleep(POLL_SECONDS)
                return False
            store.add(READ, 1)
            while time.monotonic() < end:
                if store.check([REPORTED]):
                    return True
                time.sleep(POLL_SECONDS)
        return False

    def _connect(self, serve: bool) -> None:
        with suppress(RuntimeError):  # of the network; the process group would fail in the same way, and say how
            # several tenants: the process group makes its store at the same port
            options = {"is_master": serve, "timeout": CONNECT, "wait_for_workers": False, "multi_tenant": True}
            store = dist.TCPStore(*self._place, self.count, **options)
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._store = dist.PrefixStore(f"litpeft/meeting/{attempt}", store)

    def _connected(self, seconds: float) -> dist.Store | None:
        end = time.monotonic() + seconds
        while self._store is None and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        return self._store


_meeting: Meeting | None = None


def open_meeting() -> None:
    """Let the other processes of this run find this one, if torchrun or srun has started several."""
    global _meeting
    kind = next((kind for kind in (TorchElasticEnvironment, SLURMEnvironment) if kind.detect()), None)
    _meeting = None if kind is None else Meeting(kind())


def wait_for_all() -> None:
    """Wait until all processes of this run are here; see `Meeting.wait`."""
    if _meeting is not None:
        _meeting.wait()


def fail_early(message: str) -> bool | None:
    """Tell the others why this process ends before all have met; see `Meeting.fail`. None if there is no meeting."""
    return None if _meeting is None or _meeting.over else _meeting.fail(message)
