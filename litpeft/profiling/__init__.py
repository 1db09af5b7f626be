"""Measurements: memory, floating-point operations, energy."""
