"""Computations that are made leaner than torch's, with the same results: what is not needed is not computed or kept."""
