"""Stop signals are heard from loading to the end, and one that the shell ignores, as for a job in the background, stays so."""

from __future__ import annotations

import os
import signal

import pytest

from litpeft.callbacks.stop_signals import SIGNALS, StopSignals


@pytest.mark.parametrize("ignored", SIGNALS)
def test_signals_are_heard_unless_they_are_ignored(ignored: int) -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)
        stop = StopSignals()
        stop.listen()
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if number == ignored:
                assert handler is signal.SIG_IGN
            else:
                assert callable(handler)
                handler(number, None)
                assert stop.received == number
                stop.received = None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked on POSIX only")
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 7), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGUSR1, 128 + signal.SIGUSR1)],
)
def test_a_worker_survives_ctrl_c_and_ends_with_other_signals(number: int, code: int) -> None:
    """Ctrl-C reaches all processes of a terminal, and the step in progress still needs its worker."""
    stop = StopSignals()
    stop.listen()
    try:
        worker = os.fork()
        if not worker:
            os.kill(os.getpid(), number)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == code
        assert stop.received is None
    finally:
        stop.forget()
