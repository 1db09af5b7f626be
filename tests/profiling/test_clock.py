"""The clock of a device: on a CPU the host's time, on a GPU events in its queue, for which nothing waits until they are read."""

from __future__ import annotations

import pytest
import torch

from litpeft.profiling.clock import device_clock


def test_on_a_cpu_the_time_is_that_of_the_host() -> None:
    now = iter([3.0, 4.5])
    clock = device_clock(torch.device("cpu"), lambda: next(now))
    assert clock.seconds(clock.mark(), clock.mark()) == 1.5


def test_on_a_gpu_a_mark_is_an_event_in_its_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, object]] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.number = len(told)

        def record(self, stream: object) -> None:
            told.append(("record", stream))

        def synchronize(self) -> None:
            told.append(("wait for", self.number))

        def elapsed_time(self, end: Event) -> float:
            return 250.0 * (end.number - self.number)  # milliseconds

    device = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda of: f"stream of {of}")
    clock = device_clock(device, lambda: pytest.fail("the host's time is not read"))
    start, end = clock.mark(), clock.mark()
    assert told == [("record", "stream of cuda:1")] * 2  # nothing waits
    assert clock.seconds(start, end) == 0.25
    assert told[2:] == [("wait for", 1)]
