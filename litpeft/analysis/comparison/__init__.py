"""Compare runs: read run folders into a `Comparison`. Does not import torch."""

from litpeft.analysis.comparison.compare_runs import compare
from litpeft.analysis.comparison.results import Comparison, Difference, Estimate, Figure, Group, Run, Verdict

__all__ = ["Comparison", "Difference", "Estimate", "Figure", "Group", "Run", "Verdict", "compare"]
