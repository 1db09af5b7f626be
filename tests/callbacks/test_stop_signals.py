"""Stop signals are heard from loading to the end, and one that the shell ignores, as for a job in the background, stays so."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

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


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, SIGTERMException, 143),
        (signal.SIGUSR1, SIGTERMException, 128 + signal.SIGUSR1),
    ],
)  # fmt: skip
def test_a_signal_becomes_the_exception_with_its_exit_code_and_a_second_one_stops_at_once(
    number: int, kind: type, code: int | None, capfd: pytest.CaptureFixture[str]
) -> None:
    stop = StopSignals()
    before = signal.getsignal(number)
    stop.listen()
    try:
        os.kill(os.getpid(), number)
        assert stop.received == number
        assert type(stop.exception()) is kind
        assert getattr(stop.exception(), "code", None) == code
        stop.agree(torch.device("cpu"))
        assert stop.received == number
        with pytest.raises(kind):
            os.kill(os.getpid(), number)
    finally:
        stop.forget()
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err.count("stopping after this step is saved; press again to stop at once") == 1


def test_without_a_signal_all_processes_go_on() -> None:
    stop = StopSignals()
    stop.agree(torch.device("cpu"))
    assert stop.received is None
