"""The most bytes of tensors that are alive at once during training steps, measured alike on both sides."""

from __future__ import annotations

import gc
import warnings

import torch


class StepPeak:
    """Between `start` and `stop` lie steps; `bytes` is the peak in them, with all that was alive when they began.

    By the events of PyTorch's own CPU allocator, or on a GPU by what CUDA's keeps; a file that is mapped counts as what
    of it is held. It costs time, so they are left out of the rates.
    """

    bytes: int | None = None

    def start(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
            return
        self._before = alive_bytes()
        self._profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        )
        self._profile.__enter__()

    def stop(self) -> None:
        if torch.cuda.is_initialized():
            self.bytes = torch.cuda.max_memory_allocated()
            return
        self._profile.__exit__(None, None, None)
        now = most = 0
        for event in self._profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                now += event.nbytes()
                most = max(most, now)
        self.bytes = self._before + most
        del self._profile


def alive_bytes() -> int:
    """Of all tensors in the process, on the host."""
    found: dict[int, int] = {}
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for thing in gc.get_objects():
            try:
                if isinstance(thing, torch.Tensor) and thing.device.type == "cpu":
                    storage = thing.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
            except (ReferenceError, RuntimeError):  # dead proxies, and tensors without storage
                continue
    return sum(found.values())
