"""Benchmarks of a model, during or after its training."""

from litpeft.benchmarks.base import Benchmark, Live, Options, Result
from litpeft.benchmarks.held_out import HeldOut
from litpeft.benchmarks.perplexity import Perplexity
from litpeft.benchmarks.suite import Evaluation, Suite, check_options

__all__ = ["Benchmark", "Evaluation", "HeldOut", "Live", "Options", "Perplexity", "Result", "Suite", "check_options"]
