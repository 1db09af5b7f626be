"""Optimizers and schedules: how the injected factories are called, and the schedules of our own."""

from litpeft.optim.build import build_optimizer, build_scheduler
from litpeft.optim.schedules import WarmupCosine, WarmupLinear

__all__ = ["WarmupCosine", "WarmupLinear", "build_optimizer", "build_scheduler"]
