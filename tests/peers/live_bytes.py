"""Measure the peak memory of live tensors during training steps, in the same way on both sides."""

from __future__ import annotations

import gc
import warnings

import torch


class StepPeak:
    """Measures the peak of the steps between `start` and `stop` in `bytes`, including tensors alive before.

    Uses the events of PyTorch's CPU allocator, or the statistics of CUDA's; memory-mapped tensors count in full. The
    measurement slows the steps down, so the rates exclude them.
    """

    bytes: int | None = None

    def start(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
            return
        self._before = alive_bytes()
        # with acc_events, the profiler would also build its table of operations, which takes most of the time
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()

    def stop(self) -> None:
        if torch.cuda.is_initialized():
            self.bytes = torch.cuda.max_memory_allocated()
            return
        self._profile.__exit__(None, None, None)
        now = peak = 0
        for event in self._profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                now += event.nbytes()
                peak = max(peak, now)
        self.bytes = self._before + peak
        del self._profile


def alive_bytes() -> int:
    """Return the bytes of all live CPU tensors of the process."""
    found: dict[int, int] = {}
    is_tensor: dict[type, bool] = {}  # a type is asked once: a process has a million objects of a few thousand types
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for candidate in gc.get_objects():
            kind = type(candidate)
            if (tensor := is_tensor.get(kind)) is None:
                tensor = is_tensor[kind] = issubclass(kind, torch.Tensor)
            try:
                if tensor and candidate.device.type == "cpu":
                    storage = candidate.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
            except RuntimeError:  # tensors without storage
                continue
    return sum(found.values())
