"""Put rows of many lengths into as few rows of one length as can be."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[np.ndarray]:
    """Rows together that fit into `capacity` tokens, by best fit from the longest on.

    Each row goes into the fullest bin that still takes it: within 11/9 of the fewest bins, and on texts within a
    percent of them (Johnson et al. 1974, https://doi.org/10.1137/0203025). The order depends on the lengths alone.

    Args:
        lengths: tokens of each row, none above the capacity.
        capacity: tokens that a packed row holds.

    Returns:
        The rows of each bin, by number.
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens left, bin), ascending
    for row in np.argsort(-np.asarray(lengths), kind="stable"):
        length = int(lengths[row])
        place = bisect.bisect_left(free, (length, -1))
        left, number = free.pop(place) if place < len(free) else (capacity, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(int(row))
        bisect.insort(free, (left - length, number))
    return [np.array(rows) for rows in bins]
