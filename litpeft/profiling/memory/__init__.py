"""Memory by purpose: tracking every tensor of a step, and estimating a run on meta tensors."""

from litpeft.profiling.memory.tracker import CATEGORIES, MemoryTracker, Peak, optimizer_tensors

__all__ = ["CATEGORIES", "MemoryTracker", "Peak", "optimizer_tensors"]
