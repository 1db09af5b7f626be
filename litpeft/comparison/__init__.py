"""Runs held against each other: from folders of records to a `Comparison`. Needs no torch."""

from litpeft.comparison.assemble import compare
from litpeft.comparison.model import Comparison, Difference, Estimate, Figure, Group, Run, Verdict

__all__ = ["Comparison", "Difference", "Estimate", "Figure", "Group", "Run", "Verdict", "compare"]
