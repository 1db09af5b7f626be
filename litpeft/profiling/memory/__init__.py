"""What memory is used for: every tensor that lives within some steps, and its role."""

from litpeft.profiling.memory.tracker import CATEGORIES, MemoryTracker, Peak, optimizer_tensors

__all__ = ["CATEGORIES", "MemoryTracker", "Peak", "optimizer_tensors"]
