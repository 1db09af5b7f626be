"""Optimizers and schedules: how the injected factories are called, and the schedules of our own."""

from litpeft.optim.build import build_optimizer, build_scheduler
from litpeft.optim.schedules import Constant, WarmupCosine, WarmupInverseSqrt, WarmupLinear

__all__ = ["Constant", "WarmupCosine", "WarmupInverseSqrt", "WarmupLinear", "build_optimizer", "build_scheduler"]
