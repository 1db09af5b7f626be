"""Statistics, comparison of runs, and the report."""
