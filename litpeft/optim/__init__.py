"""Build optimizers and schedulers from the command line's choices; learning-rate schedules of litpeft."""

from litpeft.optim.build import build_optimizer, build_scheduler, fast_forward
from litpeft.optim.schedules import Constant, WarmupCosine, WarmupInverseSqrt, WarmupLinear

__all__ = [
    "Constant",
    "WarmupCosine",
    "WarmupInverseSqrt",
    "WarmupLinear",
    "build_optimizer",
    "build_scheduler",
    "fast_forward",
]
