"""Stop signals are heard from loading to the end, and one that the shell ignores, as for a job in the background, stays so."""

from __future__ import annotations

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
