"""The time that a device takes for queued work: on a GPU by events in its queue, so that the host never waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


class HostClock:
    """Time of the host. For a CPU, where work is done when a call returns.

    Args:
        now: function that returns the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.mark = now

    def seconds(self, start: float, end: float) -> float:
        """Return the seconds between two marks."""
        return end - start


class CudaClock:
    """Time of a GPU's queue. A mark takes the time at which the GPU reaches it, after all work queued before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Any:
        """Queue a mark; the host does not wait for it."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Return the seconds between two marks; waits until the GPU has reached the second one."""
        end.synchronize()
        return start.elapsed_time(end) / 1000


def device_clock(device: torch.device, now: Callable[[], float] = time.perf_counter) -> HostClock | CudaClock:
    """Return the clock of a device; `now` is the time of the host."""
    return CudaClock(device) if device.type == "cuda" else HostClock(now)
