"""How cost grows: compare, report and sweep on many made-up runs."""
